// Applying a list: forward passes, and input gradients with the transposed list.

namespace {

using ApplyTile = void (*)(const EqList&, const EqGrid&, const float* packed, const float* in,
                           float* out, int64_t first_row, int64_t end_row, Taps taps,
                           Ahead& ahead, Ahead& out_ahead, bool past);

// Adds entries to the sums of rows [Lane, Lane + W): each is an offset and W weights.
template <int W, int Lane, int R, int C, int G>
EQ_INLINE void add_entries(const float* entry, int64_t count, const float* in, int64_t in_row,
                           int64_t in_column, Line (&sums)[G][R * C]) {
  for (int64_t k = 0; k < count; ++k, entry += W + 1) {
    int32_t offset;
    std::memcpy(&offset, entry, sizeof offset);
    const float* source = in + offset;
    if constexpr (W == 1) {
      const Line weight = all(entry[1]);
      EQ_UNROLL for (int r = 0; r < R; ++r) EQ_UNROLL for (int c = 0; c < C; ++c) {
        sums[Lane][r * C + c] =
            fma(weight, load(source + r * in_row + c * in_column), sums[Lane][r * C + c]);
      }
    } else {
      Line weights[W];
      EQ_UNROLL for (int g = 0; g < W; ++g) weights[g] = all(entry[1 + g]);
      EQ_UNROLL for (int r = 0; r < R; ++r) EQ_UNROLL for (int c = 0; c < C; ++c) {
        const Line seen = load(source + r * in_row + c * in_column);
        EQ_UNROLL for (int g = 0; g < W; ++g) {
          sums[g][r * C + c] = fma(weights[g], seen, sums[g][r * C + c]);
        }
      }
    }
  }
}

// Where the entries of a run lie: behind an offset for each entry and all weights before them.
template <int W>
EQ_INLINE const float* packed_run(const float* packed, const Run& run) {
  return packed + static_cast<int64_t>(run.first) * (W + 1) + run.shift;
}

// One tile of positions for rows [first_row, end_row) of the list. `packed` holds for every entry
// its offset and then its weights.
template <int G, int R, int C, int Step>
void apply_tile(const EqList& list, const EqGrid& grid, const float* packed, const float* in,
                float* out, int64_t first_row, int64_t end_row, Taps taps, Ahead& ahead,
                Ahead& out_ahead, bool past) {
  const int64_t in_column = column_step<Step>(grid.in_column), in_row = grid.in_row;
  for (int64_t block = 0; block < list.blocks; ++block) {
    int64_t at = (block * list.rows + first_row) * starts_of_row<G>(list);
    for (int64_t row = first_row; row < end_row; ++row, at += starts_of_row<G>(list)) {
      const RowRuns<G> runs(list, at, taps);
      ahead.fetch<0>();
      out_ahead.fetch<1>();
      if (block > 0 && runs.empty()) continue;
      float* target = out + row * G * grid.out_channel;
      Line sums[G][R * C];
      // A last group that is not full has no channel to load from or store to.
      const int64_t present = G == 1 ? 1 : grid.last_row - row * G;
      EQ_UNROLL for (int g = 0; g < G; ++g) {
        EQ_UNROLL for (int r = 0; r < R; ++r) EQ_UNROLL for (int c = 0; c < C; ++c) {
          sums[g][r * C + c] =
              block == 0 || (G > 1 && g >= present)
                  ? zero()
                  : load(target + g * grid.out_channel + r * grid.out_row + c * grid.out_column);
        }
      }
      add_entries<G, 0, R, C>(packed_run<G>(packed, runs.whole), runs.count(), in, in_row,
                              in_column, sums);
      if constexpr (G == 2) {
        add_entries<1, 0, R, C>(packed_run<1>(packed, runs.single[0]), runs.count(0), in, in_row,
                                in_column, sums);
        add_entries<1, 1, R, C>(packed_run<1>(packed, runs.single[1]), runs.count(1), in, in_row,
                                in_column, sums);
      }
      EQ_UNROLL for (int g = 0; g < G; ++g) {
        if (G > 1 && g >= present) break;
        EQ_UNROLL for (int r = 0; r < R; ++r) EQ_UNROLL for (int c = 0; c < C; ++c) {
          float* place = target + g * grid.out_channel + r * grid.out_row + c * grid.out_column;
          if (past) {
            store_past(place, sums[g][r * C + c]);
          } else {
            store(place, sums[g][r * C + c]);
          }
        }
      }
    }
  }
}

template <int G, int R, int C>
ApplyTile apply_tile_for(int64_t in_column) {
  if constexpr (!fits(G, R, C)) return nullptr;
  if (in_column == kLanes) return &apply_tile<G, R, C, 1>;
  if (in_column == 2 * kLanes) return &apply_tile<G, R, C, 2>;
  if constexpr (R * C == 1) return &apply_tile<G, R, C, 0>;
  return nullptr;
}

// The function for the asked tile, or for the largest smaller one there is.
ApplyTile choose_apply_tile(int64_t group, const EqGrid& grid, TileShape* chosen) {
  ApplyTile found = nullptr;
  const int64_t most_rows = grid.tile_rows < grid.rows ? grid.tile_rows : grid.rows;
  const int64_t most_columns = grid.tile_columns < grid.columns ? grid.tile_columns : grid.columns;
#define EQ_CHOOSE(G, R, C)                                              \
  if (group == G && R <= most_rows && C <= most_columns) {              \
    if (ApplyTile tile = apply_tile_for<G, R, C>(grid.in_column)) {     \
      found = tile;                                                     \
      *chosen = {G, R, C};                                              \
    }                                                                   \
  }
  EQ_TILE_SHAPES(EQ_CHOOSE)
#undef EQ_CHOOSE
  return found;
}

// Entries [first, end) with `width` weights each, which start at `slot`, to where they are read.
EQ_INLINE void pack_entries(const EqList& list, const float* values, int64_t first, int64_t end,
                            int64_t slot, int64_t width, float* packed) {
  float* entry = packed + first + slot;
  for (int64_t k = first; k < end; ++k) {
    const int32_t offset = static_cast<int32_t>(list.offsets[k] * list.scale);
    std::memcpy(entry++, &offset, sizeof offset);
    for (int64_t w = 0; w < width; ++w) {
      const int32_t source = list.sources[slot++];
      *entry++ = source < 0 ? 0.0f : values[source];
    }
  }
}

// Offsets and weights of all entries in the order in which they are read.
const float* pack(const EqList& list, const float* values, int threads) {
  static thread_local Scratch scratch;
  float* packed = scratch.at_least(static_cast<size_t>(list.entries + list.weights));
  if (list.group != 2) {
    for_shares(list.entries, threads, [&](int64_t first, int64_t end) {
      pack_entries(list, values, first, end, first * list.group, list.group, packed);
    });
    return packed;
  }
  constexpr int64_t kShare = 16384;
  const int64_t shares = (list.entries + kShare - 1) / kShare;
  const int64_t pairs = list.blocks * list.rows;
  parallel_for(shares, threads, [&](int64_t share) {
    for (int64_t pair = pairs * share / shares; pair < pairs * (share + 1) / shares; ++pair) {
      for (int64_t part = 0; part < 3; ++part) {
        const int64_t at = (pair * 3 + part) * list.taps;
        pack_entries(list, values, list.starts[at], list.starts[at + list.taps], list.slots[at],
                     part == 0 ? 2 : 1, packed);
      }
    }
  });
  return packed;
}

void apply(const EqList* list, const EqGrid* grid, const float* values, const float* in,
           float* out) {
  TileShape shape{1, 1, 1};
  const ApplyTile tile = choose_apply_tile(list->group, *grid, &shape);
  const float* packed = pack(*list, values, grid->threads);
  const int64_t strips = tiles_in(grid->columns, shape.columns);
  // A last tile that was moved back shares rows with the one before it, so both are one task: two
  // threads that add up the same positions block by block would disturb each other.
  const int64_t all_bands = tiles_in(grid->rows, shape.rows);
  const int64_t bands = grid->rows % shape.rows == 0 ? all_bands : grid->rows / shape.rows;
  // Only what is complete at once can go past the caches, and in runs that fill a page.
  const bool past = list->blocks == 1 && grid->out_column == kLanes &&
                    goes_past(out, grid->outer * grid->rows * grid->columns * grid->last_row,
                              kConvolutionPastBytes);
  // Every task is a run of neighbouring pieces of the maps, so that what a thread fetches ahead for
  // writing is its own: lines that two threads write go to and fro between their caches. Where
  // there are few pieces, the rows of the list are shared out too.
  const int64_t pieces = grid->outer * bands;
  int64_t runs = 1, chunks = 1;
  if (grid->threads > 1) {
    const int64_t least = 4 * grid->threads, one = pieces > 0 ? pieces : 1;
    runs = pieces < 2 * least ? pieces : 2 * least;
    chunks = (least + one - 1) / one;
    const int64_t most = (list->rows + 7) / 8;
    if (chunks > most) chunks = most;
  }
  parallel_for(runs * chunks, grid->threads, [&](int64_t task) {
    const int64_t chunk = task % chunks, run = task / chunks;
    const int64_t first_row = list->rows * chunk / chunks;
    const int64_t end_row = list->rows * (chunk + 1) / chunks;
    const int64_t end_piece = pieces * (run + 1) / runs;
    for (int64_t piece = pieces * run / runs; piece < end_piece; ++piece) {
      const int64_t band = piece % bands, outer = piece / bands;
      const bool goes_on = chunks == 1 && piece + 1 < end_piece;
      const int64_t last = band == bands - 1 ? all_bands : band + 1;
      for (int64_t part = band; part < last; ++part) {
        const int64_t r = tile_start(part, shape.rows, grid->rows);
        const float* source = in + outer * grid->in_outer + r * grid->in_row;
        float* target = out + outer * grid->out_outer + r * grid->out_row;
        const Taps taps = taps_inside(*list, *grid, r, shape.rows);
        const int64_t portions = strips * list->blocks * (end_row - first_row);
        Ahead ahead = input_ahead(*list, *grid, in, outer, r, shape.rows, portions);
        Ahead out_ahead;
        if (!past && goes_on) {
          out_ahead = output_ahead(*grid, out, outer, r, shape.rows, portions);
        }
        for (int64_t strip = 0; strip < strips; ++strip) {
          const int64_t c = tile_start(strip, shape.columns, grid->columns);
          tile(*list, *grid, packed, source + c * grid->in_column, target + c * grid->out_column,
               first_row, end_row, taps, ahead, out_ahead, past);
        }
      }
    }
    if (past) settle();
  });
}

}  // namespace
