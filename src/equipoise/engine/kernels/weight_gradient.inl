// Gradients of the entries of a list: of the active weights only.

namespace {

using GradientTile = void (*)(const EqList&, const EqGrid&, const int32_t* offsets,
                              const float* in, const float* out_gradient, float* sums,
                              int64_t first_row, int64_t end_row, int skip_rows,
                              int skip_columns, Taps taps, Ahead& ahead, Ahead& gradient_ahead);

// Sum over the tile of gradient * input, in two chains so that they do not wait for each other.
template <int R, int C>
EQ_INLINE Line dot(const Line* gradient, const float* source, int64_t in_row, int64_t in_column) {
  Line even = zero(), odd = zero();
  EQ_UNROLL for (int r = 0; r < R; ++r) EQ_UNROLL for (int c = 0; c < C; ++c) {
    const int p = r * C + c;
    const Line seen = load(source + r * in_row + c * in_column);
    if (p % 2 == 0) {
      even = fma(gradient[p], seen, even);
    } else {
      odd = fma(gradient[p], seen, odd);
    }
  }
  return add(even, odd);
}

// Adds the products of entries with one row: sum k belongs to entry k.
template <int R, int C>
EQ_INLINE void add_row(const int32_t* offsets, int64_t count, const float* in, int64_t in_row,
                       int64_t in_column, const Line* gradient, float* sums) {
  int64_t k = 0;
  for (; k + 3 < count; k += 4) {
    add_sums4(sums + k, dot<R, C>(gradient, in + offsets[k], in_row, in_column),
              dot<R, C>(gradient, in + offsets[k + 1], in_row, in_column),
              dot<R, C>(gradient, in + offsets[k + 2], in_row, in_column),
              dot<R, C>(gradient, in + offsets[k + 3], in_row, in_column));
  }
  for (; k < count; ++k) {
    sums[k] += sum(dot<R, C>(gradient, in + offsets[k], in_row, in_column));
  }
}

// The products of one entry with W rows.
template <int W, int R, int C>
EQ_INLINE void dots_of(const float* source, int64_t in_row, int64_t in_column,
                       const Line (*gradient)[R * C], Line* dots) {
  EQ_UNROLL for (int g = 0; g < W; ++g) dots[g] = zero();
  EQ_UNROLL for (int r = 0; r < R; ++r) EQ_UNROLL for (int c = 0; c < C; ++c) {
    const Line seen = load(source + r * in_row + c * in_column);
    EQ_UNROLL for (int g = 0; g < W; ++g) {
      dots[g] = fma(gradient[g][r * C + c], seen, dots[g]);
    }
  }
}

// Adds the products of entries with the W rows that share them: W sums an entry.
template <int W, int R, int C>
EQ_INLINE void add_rows(const int32_t* offsets, int64_t count, const float* in, int64_t in_row,
                        int64_t in_column, const Line (*gradient)[R * C], float* sums) {
  int64_t k = 0;
  if constexpr (W == 2) {
    for (; k + 1 < count; k += 2) {
      Line dots[4];
      dots_of<2, R, C>(in + offsets[k], in_row, in_column, gradient, dots);
      dots_of<2, R, C>(in + offsets[k + 1], in_row, in_column, gradient, dots + 2);
      add_sums4(sums + 2 * k, dots[0], dots[1], dots[2], dots[3]);
    }
  }
  for (; k < count; ++k) {
    Line dots[W];
    dots_of<W, R, C>(in + offsets[k], in_row, in_column, gradient, dots);
    float* target = sums + k * W;
    if constexpr (W == 4) {
      add_sums4(target, dots[0], dots[1], dots[2], dots[3]);
    } else {
      EQ_UNROLL for (int g = 0; g < W; ++g) target[g] += sum(dots[g]);
    }
  }
}

// Adds one tile's share to `sums`, which has a number for each weight of each entry. The first
// skip_rows and skip_columns of the tile belong to the tile before it as well and do not count.
template <int G, int R, int C, int Step>
void gradient_tile(const EqList& list, const EqGrid& grid, const int32_t* offsets, const float* in,
                   const float* out_gradient, float* sums, int64_t first_row, int64_t end_row,
                   int skip_rows, int skip_columns, Taps taps, Ahead& ahead,
                   Ahead& gradient_ahead) {
  const int64_t in_column = column_step<Step>(grid.in_column), in_row = grid.in_row;
  for (int64_t block = 0; block < list.blocks; ++block) {
    int64_t at = (block * list.rows + first_row) * starts_of_row<G>(list);
    for (int64_t row = first_row; row < end_row; ++row, at += starts_of_row<G>(list)) {
      const RowRuns<G> runs(list, at, taps);
      ahead.fetch<0>();
      gradient_ahead.fetch<0>();
      if (runs.empty()) continue;
      const float* source_gradient = out_gradient + row * G * grid.out_channel;
      Line gradient[G][R * C];
      const int64_t present = G == 1 ? 1 : grid.last_row - row * G;
      EQ_UNROLL for (int g = 0; g < G; ++g) {
        EQ_UNROLL for (int r = 0; r < R; ++r) EQ_UNROLL for (int c = 0; c < C; ++c) {
          gradient[g][r * C + c] =
              G > 1 && g >= present
                  ? zero()
                  : load(source_gradient + g * grid.out_channel + r * grid.out_row +
                         c * grid.out_column);
        }
      }
      if (skip_rows + skip_columns > 0) {
        EQ_UNROLL for (int g = 0; g < G; ++g) {
          EQ_UNROLL for (int r = 0; r < R; ++r) EQ_UNROLL for (int c = 0; c < C; ++c) {
            if (r < skip_rows || c < skip_columns) gradient[g][r * C + c] = zero();
          }
        }
      }
      const Run& run = runs.whole;
      const int64_t slot = static_cast<int64_t>(run.first) * G + run.shift;
      if constexpr (G == 1) {
        add_row<R, C>(offsets + run.first, runs.count(), in, in_row, in_column, gradient[0], sums + slot);
      } else {
        add_rows<G, R, C>(offsets + run.first, runs.count(), in, in_row, in_column, gradient,
                          sums + slot);
      }
      if constexpr (G == 2) {
        EQ_UNROLL for (int g = 0; g < 2; ++g) {
          const Run& single = runs.single[g];
          add_row<R, C>(offsets + single.first, runs.count(g), in, in_row, in_column, gradient[g],
                        sums + single.first + single.shift);
        }
      }
    }
  }
}

template <int G, int R, int C>
GradientTile gradient_tile_for(int64_t in_column) {
  if constexpr (!fits(G, R, C)) return nullptr;
  if (in_column == kLanes) return &gradient_tile<G, R, C, 1>;
  if (in_column == 2 * kLanes) return &gradient_tile<G, R, C, 2>;
  if constexpr (R * C == 1) return &gradient_tile<G, R, C, 0>;
  return nullptr;
}

// The function for the asked tile, or for the largest smaller one there is.
GradientTile choose_gradient_tile(int64_t group, const EqGrid& grid, TileShape* chosen) {
  GradientTile found = nullptr;
  const int64_t most_rows = grid.tile_rows < grid.rows ? grid.tile_rows : grid.rows;
  const int64_t most_columns = grid.tile_columns < grid.columns ? grid.tile_columns : grid.columns;
#define EQ_CHOOSE(G, R, C)                                                \
  if (group == G && R <= most_rows && C <= most_columns) {                \
    if (GradientTile tile = gradient_tile_for<G, R, C>(grid.in_column)) { \
      found = tile;                                                       \
      *chosen = {G, R, C};                                                \
    }                                                                     \
  }
  EQ_TILE_SHAPES(EQ_CHOOSE)
#undef EQ_CHOOSE
  return found;
}

// Offsets in floats; a copy only where they are stored in other units.
const int32_t* scaled_offsets(const EqList& list, int threads) {
  if (list.scale == 1) return list.offsets;
  static thread_local Scratch scratch;
  float* memory = scratch.at_least(static_cast<size_t>(list.entries));
  int32_t* offsets = reinterpret_cast<int32_t*>(memory);
  for_shares(list.entries, threads, [&](int64_t first, int64_t end) {
    for (int64_t k = first; k < end; ++k) {
      offsets[k] = static_cast<int32_t>(list.offsets[k] * list.scale);
    }
  });
  return offsets;
}

// The sums of all slices, where they belong; in a fixed order.
void add_slices(const EqList& list, const float* sums, int64_t slices, float* gradient,
                int threads) {
  const int32_t* sources = list.sources;
  const int64_t weights = list.weights;
  if (!list.repeats) {
    for_shares(weights, threads, [&](int64_t first, int64_t end) {
      for (int64_t k = first; k < end; ++k) {
        if (sources[k] < 0) continue;
        float total = sums[k];
        for (int64_t slice = 1; slice < slices; ++slice) total += sums[slice * weights + k];
        gradient[sources[k]] = total;
      }
    });
    return;
  }
  for (int64_t k = 0; k < weights; ++k) {
    if (sources[k] >= 0) gradient[sources[k]] = 0.0f;
  }
  for (int64_t slice = 0; slice < slices; ++slice) {
    for (int64_t k = 0; k < weights; ++k) {
      if (sources[k] >= 0) gradient[sources[k]] += sums[slice * weights + k];
    }
  }
}

void weight_gradient(const EqList* list, const EqGrid* grid, const float* in,
                     const float* out_gradient, float* gradient) {
  TileShape shape{1, 1, 1};
  const GradientTile tile = choose_gradient_tile(list->group, *grid, &shape);
  const int32_t* offsets = scaled_offsets(*list, grid->threads);
  const int64_t bands = tiles_in(grid->rows, shape.rows);
  const int64_t strips = tiles_in(grid->columns, shape.columns);
  const int64_t units = grid->outer * bands, weights = list->weights;
  // Each slice of the maps has sums of its own, added up in a fixed order: the result does not
  // depend on the number of threads, which share out the rows of the list too.
  // Long lists have no slices, because their sums would not stay in a cache.
  constexpr int64_t kLong = 32768;
  const int64_t slices = units < 1 || weights > kLong ? 1 : units < 4 ? units : 4;
  int64_t chunks = grid->threads > 1 ? (2 * grid->threads + slices - 1) / slices : 1;
  if (chunks > list->rows) chunks = list->rows > 0 ? list->rows : 1;
  static thread_local Scratch scratch;
  float* sums = scratch.at_least(static_cast<size_t>(slices * weights));
  if (weights > 0) std::memset(sums, 0, static_cast<size_t>(slices * weights) * sizeof(float));
  parallel_for(slices * chunks, grid->threads, [&](int64_t task) {
    const int64_t slice = task / chunks, chunk = task % chunks;
    const int64_t first_row = list->rows * chunk / chunks;
    const int64_t end_row = list->rows * (chunk + 1) / chunks;
    for (int64_t unit = units * slice / slices; unit < units * (slice + 1) / slices; ++unit) {
      const int64_t band = unit % bands, outer = unit / bands;
      const int64_t r = tile_start(band, shape.rows, grid->rows);
      const float* source = in + outer * grid->in_outer + r * grid->in_row;
      const float* from = out_gradient + outer * grid->out_outer + r * grid->out_row;
      const Taps taps = taps_inside(*list, *grid, r, shape.rows);
      const int64_t portions = strips * list->blocks * (end_row - first_row);
      Ahead ahead = input_ahead(*list, *grid, in, outer, r, shape.rows, portions);
      Ahead gradient_ahead = output_ahead(*grid, out_gradient, outer, r, shape.rows, portions);
      for (int64_t strip = 0; strip < strips; ++strip) {
        const int64_t c = tile_start(strip, shape.columns, grid->columns);
        tile(*list, *grid, offsets, source + c * grid->in_column, from + c * grid->out_column,
             sums + slice * weights, first_row, end_row,
             static_cast<int>(band * shape.rows - r), static_cast<int>(strip * shape.columns - c),
             taps, ahead, gradient_ahead);
      }
    }
  });
  add_slices(*list, sums, slices, gradient, grid->threads);
}

}  // namespace
