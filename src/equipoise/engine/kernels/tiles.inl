// Tiles of positions held in registers, and the choice among them.
//
// A tile of R x C positions of G rows of the list keeps G * R * C lines in registers, so its loops
// must be unrolled at compile time: each shape is a function of its own. Column strides of one and
// two lines, which nearly all layers have, become constants too.

namespace {

struct TileShape {
  int group, rows, columns;
};

// M(group, rows, columns) for every shape that has a function, smaller areas first.
#define EQ_TILE_SHAPES(M)                                                                     \
  M(1, 1, 1) M(1, 1, 2) M(1, 2, 1) M(1, 2, 2) M(1, 1, 4) M(1, 4, 1) M(1, 1, 6) M(1, 2, 3)     \
  M(1, 1, 8) M(1, 2, 4) M(1, 4, 2) M(1, 1, 16) M(1, 2, 8) M(1, 4, 4) M(1, 4, 6)               \
  M(2, 1, 1) M(2, 1, 2) M(2, 1, 3) M(2, 2, 2) M(2, 1, 4) M(2, 1, 8) M(2, 2, 4)                \
  M(4, 1, 1) M(4, 1, 2) M(4, 1, 3) M(4, 2, 2) M(4, 1, 4) M(4, 1, 6) M(4, 2, 3)

constexpr bool fits(int group, int rows, int columns) {
  return group * rows * columns <= kRegisterLines;
}

// Distance between columns in floats: a constant for one or two lines, else the given one.
template <int Step>
EQ_INLINE int64_t column_step(int64_t given) {
  return Step > 0 ? Step * kLanes : given;
}

// Start of tile i along a side: the last tile is moved back so that it ends with the side.
EQ_INLINE int64_t tile_start(int64_t i, int64_t tile, int64_t side) {
  int64_t start = i * tile;
  return start + tile <= side ? start : side - tile;
}

EQ_INLINE int64_t tiles_in(int64_t side, int64_t tile) { return (side + tile - 1) / tile; }

// Which taps of a list read inside the maps, for a tile that starts at this row of positions.
struct Taps {
  int64_t first, end;
};

EQ_INLINE Taps taps_inside(const EqList& list, const EqGrid& grid, int64_t row, int64_t rows) {
  Taps taps{0, list.taps};
  if (grid.in_rows == 0) return taps;
  const int64_t top = row * grid.in_step, bottom = (row + rows - 1) * grid.in_step;
  while (taps.first < taps.end && bottom + list.tap_rows[taps.first] < 0) ++taps.first;
  while (taps.end > taps.first && top + list.tap_rows[taps.end - 1] >= grid.in_rows) --taps.end;
  return taps;
}

// A run of entries of one part of a row: entry k has its weights from slot k * width + shift on.
struct Run {
  int32_t first, end;
  int64_t shift;
};

// How far apart the starts of two rows are.
template <int G>
EQ_INLINE int64_t starts_of_row(const EqList& list) {
  return (G == 2 ? 3 : 1) * list.taps;
}

// A part of the row whose starts begin at `at`. Rows without parts have one, with `group` weights an
// entry.
template <int G>
EQ_INLINE Run run_of(const EqList& list, int64_t at, int part, Taps taps) {
  at += part * list.taps;
  const int32_t first = list.starts[at + taps.first], end = list.starts[at + taps.end];
  const int64_t width = G == 2 && part > 0 ? 1 : G;
  const int64_t shift = G == 2 ? list.slots[at + taps.first] - first * width : 0;
  return {first, end, shift};
}

// The runs of one row of the list: that of all its rows, and for pairs those of either one.
template <int G>
struct RowRuns {
  Run whole, single[2] = {};

  EQ_INLINE_MEMBER RowRuns(const EqList& list, int64_t at, Taps taps)
      : whole(run_of<G>(list, at, 0, taps)) {
    if constexpr (G == 2) {
      single[0] = run_of<G>(list, at, 1, taps);
      single[1] = run_of<G>(list, at, 2, taps);
    }
  }
  EQ_INLINE_MEMBER int64_t count() const { return whole.end - whole.first; }
  EQ_INLINE_MEMBER int64_t count(int row) const { return single[row].end - single[row].first; }
  EQ_INLINE_MEMBER bool empty() const { return count() + count(0) + count(1) == 0; }
};

// Lines that the next tiles will read or write, the same run of each channel, fetched a few at a time while
// this one is computed: their order is unknown to the processor, so it would wait for each.
struct Ahead {
  const float* at = nullptr;
  int64_t run = 0, left = 0, channels = 0, skip = 0, portion = 0;

  // A template, because the processor wants to know at once what will be written.
  template <int Write>
  EQ_INLINE_MEMBER void fetch() {
    for (int64_t i = 0; i < portion; ++i, --left) {
      if (left == 0) {
        if (--channels <= 0) {
          portion = 0;
          return;
        }
        at += skip;
        left = run;
      }
      __builtin_prefetch(at, Write, 2);
      at += kLanes;
    }
  }
};

// All lines of `rows` rows of each channel, from `first` on, in so many portions.
EQ_INLINE Ahead lines_ahead(const float* first, int64_t rows, int64_t row, int64_t channels,
                            int64_t channel, int64_t portions) {
  Ahead ahead;
  if (rows <= 0 || portions <= 0) return ahead;
  ahead.at = first;
  ahead.run = ahead.left = rows * row / kLanes;
  ahead.channels = channels;
  ahead.skip = channel - ahead.run * kLanes;
  ahead.portion = (ahead.run * channels + portions - 1) / portions;
  return ahead;
}

// What the tiles below those at `row`, or the first ones of the next maps, read and these do not.
EQ_INLINE Ahead input_ahead(const EqList& list, const EqGrid& grid, const float* in, int64_t outer,
                            int64_t row, int64_t rows, int64_t portions) {
  if (!grid.ahead || list.taps == 0) return {};
  const int64_t last = grid.in_rows - 1;
  const int64_t low = list.tap_rows[0], high = list.tap_rows[list.taps - 1];
  int64_t first = (row + rows - 1) * grid.in_step + high + 1;
  int64_t end = (row + 2 * rows - 1) * grid.in_step + high;
  if (row + rows >= grid.rows) {
    if (++outer >= grid.outer) return {};
    first = low;
    end = (rows - 1) * grid.in_step + high;
  }
  if (first < 0) first = 0;
  if (end > last) end = last;
  return lines_ahead(in + outer * grid.in_outer + first * grid.in_map_row, end - first + 1,
                     grid.in_map_row, grid.in_channels, grid.in_channel, portions);
}

// The lines of the written maps, or of their gradient, that the next tiles need.
EQ_INLINE Ahead output_ahead(const EqGrid& grid, const float* out, int64_t outer, int64_t row,
                             int64_t rows, int64_t portions) {
  if (!grid.ahead) return {};
  int64_t first = row + rows;
  if (first >= grid.rows) {
    if (++outer >= grid.outer) return {};
    first = 0;
  }
  const int64_t left = grid.rows - first;
  return lines_ahead(out + outer * grid.out_outer + first * grid.out_row,
                     left < rows ? left : rows, grid.out_row, grid.last_row, grid.out_channel,
                     portions);
}

// body(first, end) for shares of [0, count), in parallel.
template <typename Body>
void for_shares(int64_t count, int threads, Body&& body) {
  constexpr int64_t kShare = 16384;
  parallel_for((count + kShare - 1) / kShare, threads, [&](int64_t share) {
    const int64_t first = share * kShare, left = count - first;
    body(first, first + (left < kShare ? left : kShare));
  });
}

// Memory of one thread that is kept from call to call.
struct Scratch {
  float* data = nullptr;
  size_t size = 0;
  float* at_least(size_t wanted) {
    if (wanted > size) {
      std::free(data);
      size = wanted + wanted / 4;
      size_t bytes = (size * sizeof(float) + 127) / 64 * 64;
      data = static_cast<float*>(std::aligned_alloc(64, bytes));
    }
    return data;
  }
  ~Scratch() { std::free(data); }
};

}  // namespace
