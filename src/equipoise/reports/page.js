/* Switches axes, arms and seeds of the plot. The state lives in the address, so that a view can
   be kept as a link: report.html#x=flops&y=train_loss&log=1&hide=1&seeds=0 */
"use strict";

(async () => {
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const select = document.getElementById("y-axis");
  const logBox = document.getElementById("log-scale");
  const seedsBox = document.getElementById("show-seeds");
  const axisButtons = [...document.querySelectorAll("button[data-x]")];
  const armButtons = [...document.querySelectorAll("button[data-arm]")];
  const state = { x: "epochs", y: "test_accuracy", hidden: new Set(), seeds: true, log: false };
  const darkGround = window.matchMedia("(prefers-color-scheme: dark)");

  await Bokeh.embed.embed_item(page.item);
  const plots = ["linear", "log"].map((name) => Bokeh.documents[0].get_model_by_name(name));
  const renderers = plots.flatMap((plot) => plot.renderers);
  const points = renderers.find((renderer) => renderer.name === "points").data_source;
  const drawn = renderers.filter((renderer) => renderer.name !== "points");

  function readAddress() {
    const given = new URLSearchParams(window.location.hash.slice(1));
    state.x = Object.hasOwn(page.x, given.get("x")) ? given.get("x") : "epochs";
    state.y = Object.hasOwn(page.y, given.get("y")) ? given.get("y") : "test_accuracy";
    const hidden = (given.get("hide") ?? "").split(",").filter((arm) => arm !== "");
    state.hidden = new Set(hidden.map(Number));
    state.seeds = given.get("seeds") !== "0";
    state.log = given.get("log") === "1";
  }

  function writeAddress() {
    const given = new URLSearchParams({ x: state.x, y: state.y });
    if (state.log) given.set("log", "1");
    if (state.hidden.size > 0) given.set("hide", [...state.hidden].join(","));
    if (!state.seeds) given.set("seeds", "0");
    window.history.replaceState(null, "", "#" + given.toString());
  }

  function words(value) {
    return Number.isFinite(value) ? String(Number(value.toPrecision(5))) : "missing";
  }

  function showControls() {
    for (const button of axisButtons) {
      button.setAttribute("aria-pressed", String(button.dataset.x === state.x));
    }
    for (const button of armButtons) {
      button.setAttribute("aria-pressed", String(!state.hidden.has(Number(button.dataset.arm))));
    }
    select.value = state.y;
    seedsBox.checked = state.seeds;
    logBox.checked = state.log;
  }

  function showCurves() {
    for (const renderer of drawn) {
      const [arm, kind] = renderer.tags;
      renderer.visible = !state.hidden.has(arm) && (kind === "mean" || state.seeds);
      const source = renderer.data_source;
      const columns = source.data;
      if (columns.x !== columns[state.x] || columns.y !== columns[state.y]) {
        source.data = { ...columns, x: columns[state.x], y: columns[state.y] };
      }
    }
    const visible = drawn.filter((renderer) => renderer.visible);
    visible.sort((a, b) => (a.tags[1] === "seed") - (b.tags[1] === "seed")); // means first
    const seen = [...new Set(visible.map((renderer) => renderer.data_source))];
    const joined = {};
    for (const name of Object.keys(points.data)) {
      if (name !== "what") joined[name] = seen.flatMap((source) => Array.from(source.data[name]));
    }
    joined.what = joined.y.map((value) => page.y[state.y] + ": " + words(value));
    points.data = joined;
    for (const plot of plots) {
      plot.below[0].axis_label = page.x[state.x];
      plot.left[0].axis_label = page.y[state.y];
      plot.visible = (plot.name === "log") === state.log;
    }
  }

  function showColors() {
    const ground = darkGround.matches ? "dark" : "light";
    const style = window.getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("--ink").trim();
    const rule = style.getPropertyValue("--rule").trim();
    for (const renderer of drawn) {
      const color = page.colors[ground][renderer.tags[0]];
      renderer.glyph.line_color = color;
      if ("fill_color" in renderer.glyph) renderer.glyph.fill_color = color;
    }
    for (const plot of plots) {
      for (const axis of [...plot.below, ...plot.left]) {
        for (const part of ["axis_label_text", "major_label_text", "axis_line", "major_tick_line"]) {
          axis[part + "_color"] = ink;
        }
      }
      for (const grid of plot.center) grid.grid_line_color = rule;
    }
  }

  function show() {
    showControls();
    showCurves();
  }

  function changed() {
    writeAddress();
    show();
  }

  for (const button of axisButtons) {
    button.addEventListener("click", () => { state.x = button.dataset.x; changed(); });
  }
  for (const button of armButtons) {
    button.addEventListener("click", () => {
      const arm = Number(button.dataset.arm);
      if (!state.hidden.delete(arm)) state.hidden.add(arm);
      changed();
    });
  }
  select.addEventListener("change", () => { state.y = select.value; changed(); });
  seedsBox.addEventListener("change", () => { state.seeds = seedsBox.checked; changed(); });
  logBox.addEventListener("change", () => { state.log = logBox.checked; changed(); });
  window.addEventListener("hashchange", () => { readAddress(); show(); });
  darkGround.addEventListener("change", showColors);

  readAddress();
  showColors();
  show();
  document.documentElement.dataset.ready = "true";
})().catch((error) => {
  document.getElementById("curves").textContent = "The curves could not be drawn: " + error;
  throw error;
});
