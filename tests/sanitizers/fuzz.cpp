// Random layers on random maps: lists, forward passes, input gradients and weight gradients of
// every instruction set, against plain loops.
//
// All numbers are small whole ones, so that sums are exact in any order and results must be equal
// bit for bit. All memory has the exact size, so that a sanitizer sees who leaves it.
//
// As a target of libFuzzer, or with EQ_STANDALONE a program of its own: fuzz SECONDS [SEED].
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "kernels.h"
#include "lists.cpp"
#include "updates.cpp"

extern "C" const EqKernels* eq_kernels(const char* name);

namespace {

constexpr int64_t kLanes = 16;

// Numbers taken from the fuzzer's bytes; zeros when they are used up.
struct Source {
  const uint8_t* data;
  size_t left;
  uint64_t state = 0x9E3779B97F4A7C15ull;

  uint8_t byte() {
    if (left == 0) return 0;
    --left;
    return *data++;
  }
  // One of low, ..., high.
  int64_t pick(int64_t low, int64_t high) { return low + byte() % (high - low + 1); }
  void seed() {
    for (int i = 0; i < 4; ++i) state = state * 257 + byte() + 1;
  }
  // -3, ..., 3, from a generator that the bytes have seeded.
  float number() {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return static_cast<float>(static_cast<int64_t>(state >> 33) % 4 * (state & 1 ? 1 : -1));
  }
  bool chance(int64_t in256) {
    number();
    return static_cast<int64_t>(state >> 40) % 256 < in256;
  }
};

struct Tiling {
  int64_t block, group;
  int32_t rows, columns, ahead;
};

struct Case {
  EqGeometry g;
  int64_t samples, size[2], out[2];
  Tiling tilings[3];
  bool wide;
  int threads;
  int64_t border_extra;
  std::vector<int64_t> positions;
  int64_t channels() const { return g.in_channels * g.groups; }
  int64_t blocks() const { return (samples + kLanes - 1) / kLanes; }
};

Tiling draw_tiling(Source& source) {
  static const int64_t groups[] = {1, 1, 2, 4};
  Tiling tiling;
  tiling.block = source.pick(0, 12);
  tiling.group = groups[source.pick(0, 3)];
  tiling.rows = static_cast<int32_t>(source.pick(1, 5));
  tiling.columns = static_cast<int32_t>(source.pick(1, 18));
  tiling.ahead = static_cast<int32_t>(source.pick(0, 1));
  return tiling;
}

Case draw(Source& source) {
  Case c;
  c.wide = source.pick(0, 2) == 0;
  for (int d = 0; d < 2; ++d) {
    c.g.kernel[d] = source.pick(1, 5);
    c.g.stride[d] = source.pick(1, 4);
    c.g.padding[d] = source.pick(0, 4);
    c.g.dilation[d] = source.pick(1, 3);
    const int64_t reach = c.g.dilation[d] * (c.g.kernel[d] - 1) + 1 - 2 * c.g.padding[d];
    const int64_t least = reach > 1 ? reach : 1;
    c.size[d] = least + source.pick(0, c.wide ? 4 : 20);
    c.out[d] = (c.size[d] - reach) / c.g.stride[d] + 1;
  }
  static const int64_t group_counts[] = {1, 1, 1, 2, 3, 11};
  c.g.groups = group_counts[source.pick(0, 5)];
  const bool depthwise = c.g.groups == 11;
  c.g.in_channels = depthwise ? 1 : source.pick(1, 9);
  c.g.out_channels = c.g.groups * (depthwise ? source.pick(1, 2) : source.pick(1, 9));
  c.samples = source.pick(0, 40);
  for (Tiling& tiling : c.tilings) tiling = draw_tiling(source);
  c.threads = static_cast<int>(source.pick(1, 4));
  c.border_extra = source.pick(0, 2);
  const int64_t density = source.pick(0, 4);
  source.seed();
  const int64_t weights = c.g.out_channels * c.g.in_channels * c.g.kernel[0] * c.g.kernel[1];
  static const int64_t chances[] = {0, 3, 40, 128, 256};
  for (int64_t p = 0; p < weights; ++p) {
    if (source.chance(chances[density])) c.positions.push_back(p);
  }
  if (density == 1 && c.positions.empty()) c.positions.push_back(weights - 1);
  // Many cheap cases find more than a few dear ones.
  const int64_t each = c.out[0] * c.out[1] * (c.samples + (c.wide ? 100 : 1));
  const size_t most = static_cast<size_t>(1000000 / each + 1);
  if (c.positions.size() > most) c.positions.erase(c.positions.begin(), c.positions.end() - most);
  return c;
}

[[noreturn]] void fail(const Case& c, const char* instructions, const char* what) {
  std::fprintf(stderr,
               "%s: %s is wrong\nout %ld in %ld groups %ld kernel %ldx%ld stride %ldx%ld padding "
               "%ldx%ld dilation %ldx%ld samples %ld maps %ldx%ld wide %d threads %d weights %zu\n",
               instructions, what, static_cast<long>(c.g.out_channels),
               static_cast<long>(c.g.in_channels), static_cast<long>(c.g.groups),
               static_cast<long>(c.g.kernel[0]), static_cast<long>(c.g.kernel[1]),
               static_cast<long>(c.g.stride[0]), static_cast<long>(c.g.stride[1]),
               static_cast<long>(c.g.padding[0]), static_cast<long>(c.g.padding[1]),
               static_cast<long>(c.g.dilation[0]), static_cast<long>(c.g.dilation[1]),
               static_cast<long>(c.samples), static_cast<long>(c.size[0]),
               static_cast<long>(c.size[1]), c.wide, c.threads, c.positions.size());
  for (const Tiling& t : c.tilings) {
    std::fprintf(stderr, "tiling block %ld group %ld rows %d columns %d\n",
                 static_cast<long>(t.block), static_cast<long>(t.group), t.rows, t.columns);
  }
  std::abort();
}

// A plain tensor (samples, channels, rows, columns).
struct Plain {
  int64_t samples, channels, rows, columns;
  std::vector<float> data;
  Plain(int64_t n, int64_t c, int64_t h, int64_t w)
      : samples(n), channels(c), rows(h), columns(w), data(static_cast<size_t>(n * c * h * w)) {}
  float& at(int64_t n, int64_t c, int64_t h, int64_t w) {
    return data[static_cast<size_t>(((n * channels + c) * rows + h) * columns + w)];
  }
  void fill(Source& source) {
    for (float& x : data) x = source.number();
  }
};

// Maps in the layout of the kernels. What must be written starts as NaN.
struct Maps {
  EqSize size;
  int64_t border;
  std::vector<float> memory;
  EqMaps maps;
  Maps(int64_t n, int64_t c, int64_t h, int64_t w, int64_t border_, bool wide)
      : size{n, c, h, w}, border(wide ? 0 : border_) {
    const int64_t blocks = (n + kLanes - 1) / kLanes;
    const int64_t high = h + 2 * border, broad = w + 2 * border;
    memory.reserve(1);  // not null, even for no samples
    memory.assign(static_cast<size_t>(blocks * c * high * broad * kLanes), 0.0f);
    maps.data = memory.data() + border * (broad + 1) * kLanes;
    if (wide) {
      const int64_t place = blocks * kLanes;
      maps.block = kLanes, maps.column = place, maps.row = w * place, maps.channel = h * w * place;
    } else {
      maps.column = kLanes, maps.row = broad * kLanes, maps.channel = high * maps.row;
      maps.block = c * maps.channel;
    }
    each([](float& x, int64_t, int64_t, int64_t, int64_t) { x = __builtin_nanf(""); });
  }
  int64_t blocks() const { return (size.samples + kLanes - 1) / kLanes; }
  template <typename Body>
  void each(Body&& body) {
    for (int64_t n = 0; n < blocks() * kLanes; ++n) {
      for (int64_t c = 0; c < size.channels; ++c) {
        for (int64_t h = 0; h < size.rows; ++h) {
          for (int64_t w = 0; w < size.columns; ++w) {
            body(maps.data[n / kLanes * maps.block + c * maps.channel + h * maps.row +
                           w * maps.column + n % kLanes],
                 n, c, h, w);
          }
        }
      }
    }
  }
  // Whether these are the numbers, with zeros in all other lanes and in the border.
  bool holds(Plain& plain) {
    bool same = true;
    each([&](float& x, int64_t n, int64_t c, int64_t h, int64_t w) {
      const float expected = n < size.samples ? plain.at(n, c, h, w) : 0.0f;
      same = same && x == expected;
      x = 0.0f;
    });
    for (float x : memory) same = same && x == 0.0f;
    return same;
  }
};

// A list and the arrays that it points to.
struct List {
  std::vector<int32_t> starts, slots, tap_rows, offsets, sources;
  EqList list;
};

EqListRequest request_of(const Case& c, const Tiling& tiling, bool transposed, const int64_t* phase,
                         const EqMaps& read, const int64_t* read_size, const int64_t* written_size,
                         int64_t place_lines) {
  const EqGeometry& g = c.g;
  const int64_t channels = transposed ? g.out_channels : c.channels();
  EqListRequest q{};
  q.transposed = transposed;
  q.expanded = c.wide;
  q.block = tiling.block > 0 && tiling.block < channels ? tiling.block : channels;
  q.group = tiling.group;
  q.taps = c.wide ? 1 : g.kernel[0];
  q.channel = read.channel / place_lines;
  q.row = read.row / place_lines;
  q.column = read.column / place_lines;
  for (int d = 0; d < 2; ++d) {
    q.phase[d] = phase[d];
    q.read[d] = read_size[d];
    q.written[d] = written_size[d];
  }
  return q;
}

List make(const Case& c, const Tiling& tiling, bool transposed, const int64_t* phase,
          const EqMaps& read, const int64_t* read_size, const int64_t* written_size,
          int64_t place_lines) {
  const EqGeometry& g = c.g;
  int64_t rows = transposed ? c.channels() : g.out_channels;
  const int64_t channels = transposed ? g.out_channels : c.channels();
  if (c.wide) rows *= written_size[0] * written_size[1];
  const EqListRequest q =
      request_of(c, tiling, transposed, phase, read, read_size, written_size, place_lines);
  const int64_t blocks = (channels + q.block - 1) / q.block;
  const int64_t groups = (rows + q.group - 1) / q.group;
  List made;
  const int64_t parts = q.group == 2 ? 3 : 1, width = q.group == 4 ? 4 : 1;
  made.starts.resize(static_cast<size_t>(blocks * groups * parts * q.taps + 1));
  made.slots.resize(made.starts.size());
  made.tap_rows.resize(static_cast<size_t>(q.taps));
  const int64_t count = static_cast<int64_t>(c.positions.size());
  const int64_t reached = c.wide ? written_size[0] * written_size[1] : 1;
  made.offsets.resize(static_cast<size_t>(count * reached));
  made.sources.resize(static_cast<size_t>(count * reached * width));
  const int64_t entries =
      eq_make_list(&g, &q, c.positions.data(), count, groups, blocks, made.starts.data(),
                   made.slots.data(), made.tap_rows.data(), made.offsets.data(),
                   made.sources.data());
  if (entries < 0 || entries > count * reached) fail(c, "any", "the number of entries");
  // What lies behind the last entry must not be read.
  made.offsets.resize(static_cast<size_t>(entries));
  made.offsets.shrink_to_fit();
  const int64_t weights = q.group == 2 ? made.slots.back() : entries * width;
  made.sources.resize(static_cast<size_t>(weights));
  made.sources.shrink_to_fit();
  made.list = {made.starts.data(),  made.slots.data(), made.tap_rows.data(), made.offsets.data(),
               made.sources.data(), groups,            blocks,               q.taps,
               entries,             weights,           q.group,              place_lines,
               reached > 1};
  return made;
}

// The same list by an update of one of other positions: some of these and some that are none.
void check_update(const Case& c, const Tiling& tiling, bool transposed, const int64_t* phase,
                  const EqMaps& read, const int64_t* read_size, const int64_t* written_size,
                  int64_t place_lines, const List& made) {
  if (c.samples == 0) return;  // strides of nothing are zero, so all entries would read one place
  const EqGeometry& g = c.g;
  const int64_t weights = g.out_channels * g.in_channels * g.kernel[0] * g.kernel[1];
  Case before = c;
  before.positions.clear();
  // Drawn from what the case is, so that it stays one that can be repeated.
  uint64_t state = static_cast<uint64_t>(c.positions.size()) * 0x9E3779B97F4A7C15ull + weights;
  size_t next = 0;
  for (int64_t p = 0; p < weights; ++p) {
    const bool is_now = next < c.positions.size() && c.positions[next] == p;
    next += is_now;
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    const bool changes = (state >> 40) % 5 == 0 && (is_now || before.positions.size() < 4000);
    if (is_now != changes) before.positions.push_back(p);
  }
  List old = make(before, tiling, transposed, phase, read, read_size, written_size, place_lines);
  const int64_t count = static_cast<int64_t>(c.positions.size());
  std::vector<int32_t> places(before.positions.size()), added_places(c.positions.size());
  std::vector<int64_t> added(c.positions.size());
  const int64_t number = eq_compare(before.positions.data(), before.positions.size(),
                                    c.positions.data(), count, places.data(), added.data(),
                                    added_places.data());
  const int64_t reached = c.wide ? written_size[0] * written_size[1] : 1;
  const int64_t width = tiling.group == 4 ? 4 : 1;
  List now;
  now.starts.resize(old.starts.size());
  now.slots.resize(old.slots.size());
  now.offsets.resize(old.offsets.size() + static_cast<size_t>(number * reached));
  now.sources.resize(old.sources.size() + static_cast<size_t>(number * reached * width));
  const EqListRequest q = request_of(c, tiling, transposed, phase, read, read_size, written_size,
                                     place_lines);
  const int64_t entries = eq_update_list(
      &g, &q, &old.list, places.data(), added.data(), added_places.data(), number,
      now.starts.data(), now.slots.data(), now.offsets.data(), now.sources.data());
  if (entries != made.list.entries) fail(c, "any", "the number of entries of an update");
  now.offsets.resize(made.offsets.size());
  now.sources.resize(made.sources.size());
  const bool slots = tiling.group != 2 || now.slots == made.slots;
  if (now.starts != made.starts || !slots || now.offsets != made.offsets ||
      now.sources != made.sources) {
    fail(c, "any", "an update");
  }
}

EqGrid grid_of(const Case& c, const Maps& read, const Maps& written, const int64_t* step,
               const int64_t* spread, const Tiling& tiling, int64_t rows, int64_t columns,
               int64_t last_row) {
  EqGrid grid{};
  grid.last_row = last_row;
  grid.tile_columns = tiling.columns;
  grid.threads = c.threads;
  if (c.wide) {
    grid.outer = grid.rows = grid.tile_rows = 1;
    grid.columns = c.blocks();
    grid.in_column = grid.out_column = kLanes;
    grid.out_channel = c.blocks() * kLanes;
    return grid;
  }
  grid.tile_rows = tiling.rows;
  grid.ahead = tiling.ahead;
  grid.in_rows = read.size.rows;
  grid.in_step = step[0];
  grid.in_map_row = read.maps.row;
  grid.in_channels = read.size.channels;
  grid.in_channel = read.maps.channel;
  grid.outer = c.blocks();
  grid.rows = rows, grid.columns = columns;
  grid.in_outer = read.maps.block;
  grid.in_row = step[0] * read.maps.row, grid.in_column = step[1] * read.maps.column;
  grid.out_outer = written.maps.block;
  grid.out_row = spread[0] * written.maps.row, grid.out_column = spread[1] * written.maps.column;
  grid.out_channel = written.maps.channel;
  return grid;
}

// Zeros that must surround the gradient of the output.
int64_t gradient_border(const Case& c) {
  int64_t needed = 0;
  for (int d = 0; d < 2; ++d) {
    const int64_t s = c.g.stride[d], p = c.g.padding[d];
    const int64_t before = c.g.dilation[d] * (c.g.kernel[d] - 1) - p;
    const int64_t low = before > 0 ? before / s : 0;
    const int64_t high = (c.size[d] - 1 + p) / s - (c.out[d] - 1);
    if (low > needed) needed = low;
    if (high > needed) needed = high;
  }
  return needed;
}

constexpr int64_t kOnes[2] = {1, 1}, kZeros[2] = {0, 0};

struct Truth {
  Plain y, dx;
  std::vector<float> dw;
};

Truth truth_of(const Case& c, const std::vector<float>& values, Plain& x, Plain& dy) {
  const EqGeometry& g = c.g;
  Truth t{Plain(c.samples, g.out_channels, c.out[0], c.out[1]),
          Plain(c.samples, c.channels(), c.size[0], c.size[1]),
          std::vector<float>(c.positions.size())};
  for (size_t k = 0; k < c.positions.size(); ++k) {
    int64_t rest = c.positions[k];
    const int64_t kw = rest % g.kernel[1];
    rest /= g.kernel[1];
    const int64_t kh = rest % g.kernel[0];
    rest /= g.kernel[0];
    const int64_t o = rest / g.in_channels;
    const int64_t i = o / (g.out_channels / g.groups) * g.in_channels + rest % g.in_channels;
    for (int64_t n = 0; n < c.samples; ++n) {
      for (int64_t h = 0; h < c.out[0]; ++h) {
        const int64_t r = h * g.stride[0] - g.padding[0] + kh * g.dilation[0];
        if (r < 0 || r >= c.size[0]) continue;
        for (int64_t w = 0; w < c.out[1]; ++w) {
          const int64_t q = w * g.stride[1] - g.padding[1] + kw * g.dilation[1];
          if (q < 0 || q >= c.size[1]) continue;
          t.y.at(n, o, h, w) += values[k] * x.at(n, i, r, q);
          t.dx.at(n, i, r, q) += values[k] * dy.at(n, o, h, w);
          t.dw[k] += x.at(n, i, r, q) * dy.at(n, o, h, w);
        }
      }
    }
  }
  return t;
}

void convert(const EqKernels& kernels, Plain& plain, Maps& maps, int threads) {
  const int64_t row = plain.columns, channel = plain.rows * row;
  const int64_t strides[4] = {plain.channels * channel, channel, row, 1};
  kernels.to_maps(plain.data.data(), strides, &maps.maps, &maps.size, threads);
}

void check(const Case& c, const char* name, const EqKernels& kernels,
           const std::vector<float>& values, Plain& x, Plain& dy, Truth& truth) {
  const EqGeometry& g = c.g;
  const int64_t padding = g.padding[0] > g.padding[1] ? g.padding[0] : g.padding[1];
  const int64_t border = padding + c.border_extra;
  Maps xs(c.samples, c.channels(), c.size[0], c.size[1], border, c.wide);
  convert(kernels, x, xs, c.threads);
  Plain back(c.samples, c.channels(), c.size[0], c.size[1]);
  const int64_t strides[4] = {1, c.samples, c.samples * c.channels(),
                              c.samples * c.channels() * c.size[0]};
  kernels.from_maps(&xs.maps, back.data.data(), strides, &xs.size, c.threads);
  size_t wrong = 0;
  for (int64_t n = 0; n < c.samples; ++n) {
    for (int64_t k = 0; k < c.channels(); ++k) {
      for (int64_t h = 0; h < c.size[0]; ++h) {
        for (int64_t w = 0; w < c.size[1]; ++w) {
          const int64_t at = n + k * strides[1] + h * strides[2] + w * strides[3];
          wrong += back.data[static_cast<size_t>(at)] != x.at(n, k, h, w);
        }
      }
    }
  }
  if (wrong > 0) fail(c, name, "the way to maps and back");

  const int64_t lines = c.wide ? (c.blocks() > 0 ? c.blocks() : 1) : 1;
  const Tiling& t = c.tilings[0];
  List forward = make(c, t, false, kZeros, xs.maps, c.size, c.out, lines);
  check_update(c, t, false, kZeros, xs.maps, c.size, c.out, lines, forward);
  Maps y(c.samples, g.out_channels, c.out[0], c.out[1], c.border_extra, c.wide);
  const int64_t positions = c.wide ? c.out[0] * c.out[1] : 1;
  EqGrid grid =
      grid_of(c, xs, y, g.stride, kOnes, t, c.out[0], c.out[1], g.out_channels * positions);
  kernels.apply(&forward.list, &grid, values.data(), xs.maps.data, y.maps.data);
  if (!y.holds(truth.y)) fail(c, name, "the output");

  Maps dys(c.samples, g.out_channels, c.out[0], c.out[1], gradient_border(c), c.wide);
  convert(kernels, dy, dys, c.threads);
  Maps dx(c.samples, c.channels(), c.size[0], c.size[1], border, c.wide);
  const Tiling& u = c.tilings[1];
  if (c.wide) {
    List list = make(c, u, true, kZeros, dys.maps, c.out, c.size, lines);
    check_update(c, u, true, kZeros, dys.maps, c.out, c.size, lines, list);
    grid = grid_of(c, dys, dx, kOnes, kOnes, u, 0, 0, c.channels() * c.size[0] * c.size[1]);
    kernels.apply(&list.list, &grid, values.data(), dys.maps.data, dx.maps.data);
  } else {
    for (int64_t a = 0; a < g.stride[0] && a < c.size[0]; ++a) {
      for (int64_t b = 0; b < g.stride[1] && b < c.size[1]; ++b) {
        const int64_t phase[2] = {a, b};
        List list = make(c, u, true, phase, dys.maps, c.out, c.size, 1);
        check_update(c, u, true, phase, dys.maps, c.out, c.size, 1, list);
        grid = grid_of(c, dys, dx, kOnes, g.stride, u, (c.size[0] - a + g.stride[0] - 1) / g.stride[0],
                       (c.size[1] - b + g.stride[1] - 1) / g.stride[1], c.channels());
        kernels.apply(&list.list, &grid, values.data(), dys.maps.data,
                      dx.maps.data + a * dx.maps.row + b * dx.maps.column);
      }
    }
  }
  if (!dx.holds(truth.dx)) fail(c, name, "the gradient of the input");

  const Tiling& v = c.tilings[2];
  List weight = make(c, v, false, kZeros, xs.maps, c.size, c.out, lines);
  grid = grid_of(c, xs, dys, g.stride, kOnes, v, c.out[0], c.out[1], g.out_channels * positions);
  std::vector<float> dw(c.positions.size());
  kernels.weight_gradient(&weight.list, &grid, xs.maps.data, dys.maps.data, dw.data());
  if (dw != truth.dw) fail(c, name, "the gradient of the weights");
}

void run(const uint8_t* data, size_t size) {
  Source source{data, size};
  const Case c = draw(source);
  std::vector<float> values(c.positions.size());
  for (float& value : values) value = source.number();
  Plain x(c.samples, c.channels(), c.size[0], c.size[1]);
  Plain dy(c.samples, c.g.out_channels, c.out[0], c.out[1]);
  x.fill(source);
  dy.fill(source);
  Truth truth = truth_of(c, values, x, dy);
  for (const char* name : {"portable", "avx2", "avx512"}) {
    const EqKernels* kernels = eq_kernels(name);
    if (kernels != nullptr) check(c, name, *kernels, values, x, dy, truth);
  }
}

}  // namespace

#ifndef EQ_STANDALONE

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  run(data, size);
  return 0;
}

#else

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 60.0;
  uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1, cases = 0;
  const auto start = std::chrono::steady_clock::now();
  auto passed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  for (; passed() < seconds; ++seed, ++cases) {
    uint8_t bytes[64];
    uint64_t state = seed * 0x9E3779B97F4A7C15ull + 1;
    for (uint8_t& byte : bytes) {
      state ^= state << 13;
      state ^= state >> 7;
      state ^= state << 17;
      byte = static_cast<uint8_t>(state >> 24);
    }
    std::fprintf(stderr, "\rseed %llu", static_cast<unsigned long long>(seed));
    run(bytes, sizeof bytes);
  }
  std::fprintf(stderr, "\n%llu cases in %.0f s, nothing found\n",
               static_cast<unsigned long long>(cases), passed());
  return 0;
}

#endif
