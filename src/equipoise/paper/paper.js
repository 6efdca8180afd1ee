/* Draws a plot when it comes into sight, and switches what all curves are drawn against. The choice
   lives in the address: paper.html?x=passes#figure-5 */
"use strict";

(() => {
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const buttons = [...document.querySelectorAll("button[data-x]")];
  const darkGround = window.matchMedia("(prefers-color-scheme: dark)");
  const drawn = new Map();
  const given = new URLSearchParams(window.location.search).get("x");
  let chosen = buttons.some((button) => button.dataset.x === given) ? given : "epochs";

  function panels(root) {
    const found = [];
    const walk = (model) => {
      if (model.type === "Figure") found.push(model);
      else for (const child of model.children ?? []) walk(child);
    };
    walk(root);
    return found;
  }

  function showColors(plot) {
    const style = window.getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("--ink").trim();
    const rule = style.getPropertyValue("--rule").trim();
    const hues = darkGround.matches ? page.dark : page.light;
    for (const renderer of plot.renderers) {
      const place = renderer.tags[0];
      const color = place < 0 ? hues[0] : hues[1 + (place % (hues.length - 1))];
      if ("line_color" in renderer.glyph) renderer.glyph.line_color = color;
      if ("fill_color" in renderer.glyph) renderer.glyph.fill_color = color;
    }
    for (const axis of [...plot.below, ...plot.left]) {
      for (const part of ["axis_label_text", "major_label_text", "axis_line", "major_tick_line"]) {
        axis[part + "_color"] = ink;
      }
    }
    for (const part of plot.center) {
      if ("grid_line_color" in part) part.grid_line_color = rule;
      if ("label_text_color" in part) {
        part.label_text_color = ink;
      }
    }
    if (plot.title) plot.title.text_color = ink;
  }

  function showChoice(plot) {
    const [x, y, xTitle, yTitle] = plot.tags[0][chosen] ?? plot.tags[0].get(chosen);
    for (const source of new Set(plot.renderers.map((renderer) => renderer.data_source))) {
      const columns = source.data;
      source.data = { ...columns, x: columns[x], y: columns[y], low: columns[y + "_low"],
        high: columns[y + "_high"] };
    }
    plot.below[0].axis_label = xTitle;
    plot.left[0].axis_label = yTitle;
  }

  async function draw(element) {
    const name = element.id;
    if (drawn.has(name)) return;
    drawn.set(name, []);
    const views = await Bokeh.embed.embed_item(page.plots[name]);
    const roots = views.roots ?? [...views];
    const plots = roots.flatMap((view) => panels(view.model ?? view));
    drawn.set(name, plots);
    for (const plot of plots) {
      showColors(plot);
      if (chosen !== "epochs") showChoice(plot);
    }
    element.dataset.drawn = "true";
  }

  function press() {
    for (const button of buttons) {
      button.setAttribute("aria-pressed", String(button.dataset.x === chosen));
    }
  }

  for (const button of buttons) {
    button.addEventListener("click", () => {
      chosen = button.dataset.x;
      press();
      for (const plots of drawn.values()) plots.forEach(showChoice);
    });
  }
  darkGround.addEventListener("change", () => {
    for (const plots of drawn.values()) plots.forEach(showColors);
  });
  press();

  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      draw(entry.target).catch((error) => {
        entry.target.textContent = "The curves could not be drawn: " + error;
        throw error;
      });
    }
  }, { rootMargin: "600px" });
  for (const element of document.querySelectorAll(".paper-plot")) watcher.observe(element);
  document.documentElement.dataset.ready = "true";
})();
