// Normalisation, rectifier and the maxima over tiles of 2 x 2 in one: the maps between them, four
// times as large as what is left, are neither written nor read.

namespace {

// The line with the largest number in one tile: the number after scale and shift, its place in
// row-major order, and the number before.
struct TileMaximum {
  Line value, place, before;
};

EQ_INLINE TileMaximum largest_in_tile(const float* y, const Strides& step, Line scale, Line shift) {
  const Line first = load(y);
  TileMaximum found = {fma(first, scale, shift), zero(), first};
  EQ_UNROLL for (int i = 1; i < 4; ++i) {
    const Line before = load(y + i / 2 * step.row + i % 2 * step.column);
    const Line value = fma(before, scale, shift);
    const Largest next = larger({found.value, found.place}, value, all(static_cast<float>(i)));
    // It comes from this place if that is where the largest number is now.
    found.before = where_equal(next.place, all(static_cast<float>(i)), before, found.before);
    found.value = next.value;
    found.place = next.place;
  }
  return found;
}

// The gradient of the largest number: zero where the rectifier closed, as in `gated`.
EQ_INLINE Line tile_gradient(Line d_out, Line largest) {
  return where_equal(max(zero(), largest), zero(), zero(), d_out);
}

// body(r, c) for every tile of one block.
template <typename Body>
EQ_INLINE void for_tiles(const EqSize& size, Body&& body) {
  const int64_t rows = size.rows / 2, columns = size.columns / 2;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) body(r, c);
  }
}

// Where a tile starts, and where its maximum lies.
EQ_INLINE int64_t tile_at(const Strides& step, int64_t r, int64_t c) {
  return 2 * (r * step.row + c * step.column);
}
EQ_INLINE int64_t pooled_at(const Strides& step, int64_t r, int64_t c) {
  return r * step.row + c * step.column;
}

template <bool Partial>
void pool_block(const EqSize& size, const float* y, Strides y_step, float* z, Strides z_step,
                const Affine& of) {
  const Affine k = of;
  for_tiles(size, [=](int64_t r, int64_t c) {
    const float* p = y + tile_at(y_step, r, c);
    auto value = [&](int64_t offset) { return fma(load(p + offset), k.scale, k.shift); };
    const Line upper = max_or_nan(value(0), value(y_step.column));
    const Line lower = max_or_nan(value(y_step.row), value(y_step.row + y_step.column));
    Line t = max(zero(), max_or_nan(upper, lower));  // in this order NaN stays
    if (Partial) t = keep_live(k.live, t);
    put(z + pooled_at(z_step, r, c), t, k.past);
  });
}

// `size` is that of y, whose rows and columns are even.
void normalise_pool(const EqMaps* y, const EqMaps* z, const EqSize* size, const float* gamma,
                    const float* beta, double epsilon, float* mean, float* variance,
                    float* inverse, float* scale, float* shift, int threads) {
  const EqSize pooled = {size->samples, size->channels, size->rows / 2, size->columns / 2};
  const bool past = maps_go_past(z, pooled);
  const int64_t blocks = blocks_of(*size), full = size->samples / kLanes;
  const Line live = first_lanes(all(1.0f), static_cast<int>(size->samples - full * kLanes));
  for_channel_chunks(*size, threads, [&](int64_t first, int64_t count) {
    const Slice ys(y, first);
    EqSize part = *size;
    part.channels = count;
    statistics(ys.get(), &part, mean + first, variance + first, 1);
    scale_and_shift(first, count, gamma, beta, epsilon, mean, variance, inverse, scale, shift);
    for (int64_t c = first; c < first + count; ++c) {
      const Affine of = {all(scale[c]), all(shift[c]), live, past};
      for (int64_t b = 0; b < blocks; ++b) {
        const auto each = b < full ? pool_block<false> : pool_block<true>;
        each(*size, plane(y, b, c), strides_of(*y), plane(z, b, c), strides_of(*z), of);
      }
    }
    if (past) settle();
  });
}

template <bool Partial>
void unpool_block(const EqSize& size, const float* y, Strides y_step, const float* d_out,
                  Strides out_step, float* dy, Strides dy_step, const Backward& of) {
  const Backward k = of;
  for_tiles(size, [=](int64_t r, int64_t c) {
    const float* p = y + tile_at(y_step, r, c);
    const TileMaximum found = largest_in_tile(p, y_step, k.scale, k.shift);
    const Line gradient = tile_gradient(load(d_out + pooled_at(out_step, r, c)), found.value);
    float* q = dy + tile_at(dy_step, r, c);
    EQ_UNROLL for (int i = 0; i < 4; ++i) {
      const Line here = where_equal(found.place, all(static_cast<float>(i)), gradient, zero());
      Line t = fma(k.a, here, k.c);
      t = fma(k.b, load(p + i / 2 * y_step.row + i % 2 * y_step.column), t);
      if (Partial) t = keep_live(k.live, t);
      put(q + i / 2 * dy_step.row + i % 2 * dy_step.column, t, k.past);
    }
  });
}

// Its backward pass; dy may be null.
void normalise_pool_backward(const EqMaps* d_out, const EqMaps* y, const EqMaps* dy,
                             const EqSize* size, const float* scale, const float* shift,
                             const float* mean, const float* inverse, float* d_gamma,
                             float* d_beta, int threads) {
  const bool past = gradients_go_past(dy, nullptr, *size);
  const int64_t blocks = blocks_of(*size), full = size->samples / kLanes;
  const double numbers = static_cast<double>(size->samples) * size->rows * size->columns;
  const Line live = first_lanes(all(1.0f), static_cast<int>(size->samples - full * kLanes));
  const Strides y_step = strides_of(*y), out_step = strides_of(*d_out);
  for_channel_chunks(*size, threads, [&](int64_t first, int64_t count) {
    for (int64_t c = first; c < first + count; ++c) {
      const float level = first_level(*y, *size, c);
      const Line scales = all(scale[c]), shifts = all(shift[c]), levels = all(level);
      Sums total = {0.0, 0.0, zero(), zero(), 0};
      for (int64_t b = 0; b < blocks; ++b) {
        const float *p = plane(y, b, c), *d = plane(d_out, b, c);
        // Lanes without a sample have no gradient.
        for_tiles(*size, [&](int64_t r, int64_t q) {
          const TileMaximum found =
              largest_in_tile(p + tile_at(y_step, r, q), y_step, scales, shifts);
          const Line gradient = tile_gradient(load(d + pooled_at(out_step, r, q)), found.value);
          total.lane_gradients = add(total.lane_gradients, gradient);
          total.lane_products = fma(gradient, sub(found.before, levels), total.lane_products);
          if (++total.lines == kFlush) flush(total);
        });
      }
      flush(total);
      const double products = total.products + level * total.gradients;
      const Slope slope = slope_of(total.gradients, products, numbers, scale[c], mean[c],
                                   inverse[c], d_gamma + c, d_beta + c);
      if (dy == nullptr) continue;
      const Backward of = {scales,  shifts, scales, all(slope.linear), all(slope.constant),
                           live, past};
      for (int64_t b = 0; b < blocks; ++b) {
        const auto each = b < full ? unpool_block<false> : unpool_block<true>;
        each(*size, plane(y, b, c), y_step, plane(d_out, b, c), out_step, plane(dy, b, c),
             strides_of(*dy), of);
      }
    }
    if (past) settle();
  });
}

}  // namespace
