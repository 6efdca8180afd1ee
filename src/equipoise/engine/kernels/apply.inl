// Applying a list: forward passes, and input gradients with the transposed list.

namespace {

using ApplyTile = void (*)(const EqList&, const EqGrid&, const float* packed, const float* in,
                           float* out, int64_t first_row, int64_t end_row);

// One tile of positions for rows [first_row, end_row) of the list. `packed` holds for every entry
// its offset and then its weights.
template <int G, int R, int C, int Step>
void apply_tile(const EqList& list, const EqGrid& grid, const float* packed, const float* in,
                float* out, int64_t first_row, int64_t end_row) {
  constexpr int kEntry = G + 1;
  const int64_t in_column = column_step<Step>(grid.in_column), in_row = grid.in_row;
  for (int64_t block = 0; block < list.blocks; ++block) {
    const int32_t* starts = list.starts + block * (list.rows + 1);
    for (int64_t row = first_row; row < end_row; ++row) {
      const int32_t first = starts[row], end = starts[row + 1];
      if (block > 0 && first == end) continue;
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
      const float* entry = packed + static_cast<int64_t>(first) * kEntry;
      for (int32_t k = first; k < end; ++k, entry += kEntry) {
        int32_t offset;
        std::memcpy(&offset, entry, sizeof offset);
        const float* source = in + offset;
        if constexpr (G == 1) {
          const Line weight = all(entry[1]);
          EQ_UNROLL for (int r = 0; r < R; ++r) EQ_UNROLL for (int c = 0; c < C; ++c) {
            sums[0][r * C + c] =
                fma(weight, load(source + r * in_row + c * in_column), sums[0][r * C + c]);
          }
        } else {
          Line seen[R * C];
          EQ_UNROLL for (int r = 0; r < R; ++r) EQ_UNROLL for (int c = 0; c < C; ++c) {
            seen[r * C + c] = load(source + r * in_row + c * in_column);
          }
          EQ_UNROLL for (int g = 0; g < G; ++g) {
            const Line weight = all(entry[1 + g]);
            EQ_UNROLL for (int p = 0; p < R * C; ++p) {
              sums[g][p] = fma(weight, seen[p], sums[g][p]);
            }
          }
        }
      }
      EQ_UNROLL for (int g = 0; g < G; ++g) {
        if (G > 1 && g >= present) break;
        EQ_UNROLL for (int r = 0; r < R; ++r) EQ_UNROLL for (int c = 0; c < C; ++c) {
          store(target + g * grid.out_channel + r * grid.out_row + c * grid.out_column,
                sums[g][r * C + c]);
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

// Offsets and weights of all entries in the order in which they are read.
const float* pack(const EqList& list, const float* values, int threads) {
  static thread_local Scratch scratch;
  const int64_t group = list.group;
  float* packed = scratch.at_least(static_cast<size_t>(list.entries * (group + 1)));
  constexpr int64_t kShare = 16384;
  parallel_for((list.entries + kShare - 1) / kShare, threads, [&](int64_t share) {
    const int64_t left = list.entries - share * kShare;
    const int64_t end = share * kShare + (left < kShare ? left : kShare);
    for (int64_t k = share * kShare; k < end; ++k) {
      float* entry = packed + k * (group + 1);
      const int32_t offset = static_cast<int32_t>(list.offsets[k] * list.scale);
      std::memcpy(entry, &offset, sizeof offset);
      for (int64_t g = 0; g < group; ++g) {
        const int32_t source = list.sources[k * group + g];
        entry[1 + g] = source < 0 ? 0.0f : values[source];
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
  // Where there are few pieces of the maps, the rows of the list are shared out too.
  int64_t chunks = 1;
  if (grid->threads > 1) {
    const int64_t pieces = grid->outer * bands > 0 ? grid->outer * bands : 1;
    chunks = (4 * grid->threads + pieces - 1) / pieces;
    const int64_t most = (list->rows + 7) / 8;
    if (chunks > most) chunks = most;
  }
  parallel_for(grid->outer * bands * chunks, grid->threads, [&](int64_t task) {
    const int64_t chunk = task % chunks, band = task / chunks % bands;
    const int64_t outer = task / chunks / bands;
    const int64_t first_row = list->rows * chunk / chunks;
    const int64_t end_row = list->rows * (chunk + 1) / chunks;
    const int64_t last = band == bands - 1 ? all_bands : band + 1;
    for (int64_t part = band; part < last; ++part) {
      const int64_t r = tile_start(part, shape.rows, grid->rows);
      const float* source = in + outer * grid->in_outer + r * grid->in_row;
      float* target = out + outer * grid->out_outer + r * grid->out_row;
      for (int64_t strip = 0; strip < strips; ++strip) {
        const int64_t c = tile_start(strip, shape.columns, grid->columns);
        tile(*list, *grid, packed, source + c * grid->in_column, target + c * grid->out_column,
             first_row, end_row);
      }
    }
  });
}

}  // namespace
