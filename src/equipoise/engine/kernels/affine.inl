// Per channel: statistics, z = f(scale * y + shift + residual), and what its backward pass needs.
#include "walk.inl"

namespace {

// Lines whose sums in single precision are added up before they go to a double.
constexpr int64_t kFlush = 128;

// A level near the numbers of a channel: sums of what is left above it keep their digits. Any
// finite level is right.
EQ_INLINE float first_level(const EqMaps& y, const EqSize& size, int64_t channel) {
  if (size.samples * size.rows * size.columns == 0) return 0.0f;
  const int64_t live = size.samples < kLanes ? size.samples : kLanes;
  const float level = sum(load(plane(&y, 0, channel))) / static_cast<float>(live);
  return __builtin_isfinite(level) ? level : 0.0f;
}

// Numbers added up as count, sum and sum of squares above `origin`; those of lines that have not
// been flushed yet are in the lane sums, as differences to `level`.
struct Moments {
  double count, sum, squares;
  float origin, level;
  Line lane_sums, lane_squares;
  int64_t lines;
};

EQ_INLINE void flush(Moments& m, int live) {
  if (m.lines == 0) return;
  const double count = static_cast<double>(m.lines) * live;
  const double shift = static_cast<double>(m.level) - m.origin;
  const double above = sum(m.lane_sums);
  m.count += count;
  m.sum += above + count * shift;
  m.squares += sum(m.lane_squares) + 2.0 * shift * above + count * shift * shift;
  // The mean so far as the next level: no part of the data can then be far from it without the
  // variance being as large.
  const float level = static_cast<float>(m.origin + m.sum / m.count);
  m.level = __builtin_isfinite(level) ? level : 0.0f;
  m.lane_sums = m.lane_squares = zero();
  m.lines = 0;
}

template <bool Partial>
EQ_INLINE void add_lines(Moments& m, const float* y, int64_t step, int64_t count, Line live) {
  const Line level = all(m.level);
  Line s[4] = {m.lane_sums, zero(), zero(), zero()};
  Line q[4] = {m.lane_squares, zero(), zero(), zero()};
  int64_t i = 0;
  auto one = [&](int j) {
    Line above = sub(load(y + (i + j) * step), level);
    if (Partial) above = keep_live(live, above);
    s[j] = add(s[j], above);
    q[j] = fma(above, above, q[j]);
  };
  for (; i + 4 <= count; i += 4) {
    EQ_UNROLL for (int j = 0; j < 4; ++j) one(j);
  }
  for (; i < count; ++i) one(0);
  m.lane_sums = add(add(s[0], s[1]), add(s[2], s[3]));
  m.lane_squares = add(add(q[0], q[1]), add(q[2], q[3]));
  m.lines += count;
}

template <bool Partial>
void add_walk(Moments& m, const Walk<1>& walk, float* y, int live) {
  const Line mask = first_lanes(all(1.0f), live);
  const int64_t step = walk.step[0][2];
  float* const base[1] = {y};
  for_runs<1>(walk, base, [&](float* const(&at)[1], int64_t count) {
    const float* line = at[0];
    while (count > 0) {
      const int64_t room = kFlush - m.lines, now = count < room ? count : room;
      add_lines<Partial>(m, line, step, now, mask);
      if (m.lines == kFlush) flush(m, live);
      line += now * step;
      count -= now;
    }
  });
  flush(m, live);
}

void statistics(const EqMaps* y, const EqSize* size, float* mean, float* variance, int threads) {
  const Operands<1> operands = {{y}};
  const Cover<1> cover = cover_of<1>(operands, *size);
  for_units(size->channels, lines_of(cover.one) * cover.blocks, threads, [&](int64_t channel) {
    const float level = first_level(*y, *size, channel);
    Moments m = {0.0, 0.0, 0.0, level, level, zero(), zero(), 0};
    if (cover.full_blocks > 0) add_walk<false>(m, cover.full, plane(y, 0, channel), kLanes);
    if (cover.full_blocks < cover.blocks) {
      add_walk<true>(m, cover.one, plane(y, cover.full_blocks, channel), cover.live);
    }
    const double above = m.sum / m.count;
    const double spread = m.squares / m.count - above * above;
    mean[channel] = static_cast<float>(m.origin + above);
    variance[channel] = spread < 0.0 ? 0.0f : static_cast<float>(spread);
  });
}

EQ_INLINE Line per_channel(const float* values, int64_t channel, float otherwise) {
  return all(values != nullptr ? values[channel] : otherwise);
}

struct Affine {
  Line scale, shift, live;
  bool past;  // the caches
};

template <bool Relu, bool Residual, bool Partial>
void affine_part(const Walk<3>& walk, float* const (&base)[3], const Affine& coefficients) {
  const Affine of = coefficients;
  const int64_t step_y = walk.step[0][2], step_r = walk.step[1][2], step_z = walk.step[2][2];
  for_runs<3>(walk, base, [&](float* const(&at)[3], int64_t count) {
    const float *y = at[0], *r = at[1];
    float* z = at[2];
    for (int64_t i = 0; i < count; ++i, y += step_y, r += step_r, z += step_z) {
      Line t = fma(load(y), of.scale, of.shift);
      if (Residual) t = add(t, load(r));
      if (Relu) t = max(zero(), t);  // in this order NaN stays
      if (Partial) t = keep_live(of.live, t);
      put(z, t, of.past);
    }
  });
  if (of.past) settle();
}

void affine_to(const EqMaps* y, const float* scale, const float* shift, const EqMaps* residual,
               const EqMaps* z, const EqSize* size, int relu, int threads, bool past) {
  using Part = void (*)(const Walk<3>&, float* const(&)[3], const Affine&);
  static constexpr Part parts[2][2][2] = {
      {{affine_part<false, false, false>, affine_part<false, false, true>},
       {affine_part<false, true, false>, affine_part<false, true, true>}},
      {{affine_part<true, false, false>, affine_part<true, false, true>},
       {affine_part<true, true, false>, affine_part<true, true, true>}}};
  const Operands<3> operands = {{y, residual, z}};
  for_parts<3>(operands, *size, threads,
               [&](const Walk<3>& walk, float* const(&base)[3], int64_t channel, int live) {
                 const Affine of = {per_channel(scale, channel, 1.0f),
                                    per_channel(shift, channel, 0.0f),
                                    first_lanes(all(1.0f), live), past};
                 parts[relu != 0][residual != nullptr][live < kLanes](walk, base, of);
               });
}

void affine(const EqMaps* y, const float* scale, const float* shift, const EqMaps* residual,
            const EqMaps* z, const EqSize* size, int relu, int threads) {
  affine_to(y, scale, shift, residual, z, size, relu, threads, maps_go_past(z, *size));
}

// Where the gradient passes: everywhere, where z > 0, or where scale * y + shift > 0.
enum Gate { kOpen, kOutput, kInput };

EQ_INLINE Gate gate_of(bool relu, const EqMaps* z) {
  return !relu ? kOpen : z != nullptr ? kOutput : kInput;
}

// The gradient behind the gate. Like torch's, it passes where the output is NaN.
template <Gate G>
EQ_INLINE Line gated(Line dz, const float* y, const float* z, Line scale, Line shift) {
  if constexpr (G == kOpen) return dz;
  const Line output = G == kOutput ? load(z) : fma(load(y), scale, shift);
  return where_equal(max(zero(), output), zero(), zero(), dz);
}

// Sums of g, and of g * (y - level), of one channel; the lines hold what is not flushed yet.
struct Sums {
  double gradients, products;
  Line lane_gradients, lane_products;
  int64_t lines;
};

EQ_INLINE void flush(Sums& sums) {
  sums.gradients += sum(sums.lane_gradients);
  sums.products += sum(sums.lane_products);
  sums.lane_gradients = sums.lane_products = zero();
  sums.lines = 0;
}

// What one channel needs besides its lines.
struct Coefficients {
  Line scale, shift, level;
};

template <Gate G, bool Products>
EQ_INLINE void add_lines(Sums& sums, const Walk<3>& walk, float* const (&at)[3], int64_t first,
                         int64_t count, const Coefficients& of) {
  const int64_t step_d = walk.step[0][2], step_y = walk.step[1][2], step_z = walk.step[2][2];
  Line s[4] = {sums.lane_gradients, zero(), zero(), zero()};
  Line p[4] = {sums.lane_products, zero(), zero(), zero()};
  auto one = [&](int64_t i, int j) {
    const float *y = at[1] + i * step_y, *z = at[2] + i * step_z;
    const Line g = gated<G>(load(at[0] + i * step_d), y, z, of.scale, of.shift);
    s[j] = add(s[j], g);
    if (Products) p[j] = fma(g, sub(load(y), of.level), p[j]);
  };
  int64_t i = first;
  for (; i + 4 <= first + count; i += 4) {
    EQ_UNROLL for (int j = 0; j < 4; ++j) one(i + j, j);
  }
  for (; i < first + count; ++i) one(i, 0);
  sums.lane_gradients = add(add(s[0], s[1]), add(s[2], s[3]));
  sums.lane_products = add(add(p[0], p[1]), add(p[2], p[3]));
  sums.lines += count;
}

template <Gate G, bool Products>
void add_walk(Sums& sums, const Walk<3>& walk, float* const (&base)[3], const Coefficients& of) {
  for_runs<3>(walk, base, [&](float* const(&at)[3], int64_t count) {
    for (int64_t i = 0; i < count;) {
      const int64_t room = kFlush - sums.lines, now = count - i < room ? count - i : room;
      add_lines<G, Products>(sums, walk, at, i, now, of);
      if (sums.lines == kFlush) flush(sums);
      i += now;
    }
  });
}

// Without `products`, y is not read unless the gate needs it.
void affine_sums(const EqMaps* dz, const EqMaps* y, const EqMaps* z, const float* scale,
                 const float* shift, const EqSize* size, int relu, double* sums, double* products,
                 int threads) {
  using Whole = void (*)(Sums&, const Walk<3>&, float* const(&)[3], const Coefficients&);
  static constexpr Whole wholes[3][2] = {{add_walk<kOpen, false>, add_walk<kOpen, true>},
                                         {add_walk<kOutput, false>, add_walk<kOutput, true>},
                                         {add_walk<kInput, false>, add_walk<kInput, true>}};
  const Whole whole = wholes[gate_of(relu != 0, z)][products != nullptr];
  const Operands<3> operands = {{dz, y, z}};
  const Walk<3> walk = walk_over<3>(operands, blocks_of(*size), *size);
  for_units(size->channels, lines_of(walk), threads, [&](int64_t channel) {
    const float level = products != nullptr ? first_level(*y, *size, channel) : 0.0f;
    const Coefficients of = {per_channel(scale, channel, 1.0f), per_channel(shift, channel, 0.0f),
                             all(level)};
    Sums total = {0.0, 0.0, zero(), zero(), 0};
    // Lanes without a sample have no gradient, so the last block needs no mask.
    float* const base[3] = {plane(dz, 0, channel), plane(y, 0, channel), plane(z, 0, channel)};
    whole(total, walk, base, of);
    flush(total);
    sums[channel] = total.gradients;
    // In this form the rounding of the sum of g cancels from products - mean * sums.
    if (products != nullptr) products[channel] = total.products + level * total.gradients;
  });
}

// The coefficients of dy = a * g + b * y + c, and what the gate and the last block need.
struct Backward {
  Line scale, shift, a, b, c, live;
  bool past;
};

template <Gate G, bool HasY, bool Partial>
void affine_backward_part(const Walk<5>& walk, float* const (&base)[5], const Backward& of) {
  const Backward k = of;
  int64_t step[5];
  for (int i = 0; i < 5; ++i) step[i] = walk.step[i][2];
  for_runs<5>(walk, base, [&](float* const(&at)[5], int64_t count) {
    const float *dz = at[0], *y = at[1], *z = at[2];
    float *dy = at[3], *dr = at[4];
    for (int64_t i = 0; i < count; ++i) {
      const Line g = gated<G>(load(dz), y, z, k.scale, k.shift);
      Line t = fma(k.a, g, k.c);
      if (HasY) t = fma(k.b, load(y), t);
      if (Partial) t = keep_live(k.live, t);
      if (dr != nullptr) put(dr, g, k.past);  // after all loads: it may be one of the operands
      if (dy != nullptr) put(dy, t, k.past);
      dz += step[0];
      y += step[1];
      z += step[2];
      dy += step[3];
      dr += step[4];
    }
  });
  if (k.past) settle();
}

// Without b, y is not read unless the gate needs it.
void affine_backward_to(const EqMaps* dz, const EqMaps* y, const EqMaps* z, const float* scale,
                        const float* shift, const float* a, const float* b, const float* c,
                        const EqMaps* dy, const EqMaps* dr, const EqSize* size, int relu,
                        int threads, bool past) {
  using Part = void (*)(const Walk<5>&, float* const(&)[5], const Backward&);
  static constexpr Part parts[3][2][2] = {
      {{affine_backward_part<kOpen, false, false>, affine_backward_part<kOpen, false, true>},
       {affine_backward_part<kOpen, true, false>, affine_backward_part<kOpen, true, true>}},
      {{affine_backward_part<kOutput, false, false>, affine_backward_part<kOutput, false, true>},
       {affine_backward_part<kOutput, true, false>, affine_backward_part<kOutput, true, true>}},
      {{affine_backward_part<kInput, false, false>, affine_backward_part<kInput, false, true>},
       {affine_backward_part<kInput, true, false>, affine_backward_part<kInput, true, true>}}};
  const Gate gate = gate_of(relu != 0, z);
  const Operands<5> operands = {{dz, y, z, dy, dr}};
  if (dy == nullptr && dr == nullptr) return;
  for_parts<5>(operands, *size, threads,
               [&](const Walk<5>& walk, float* const(&base)[5], int64_t channel, int live) {
                 const Backward of = {
                     per_channel(scale, channel, 1.0f), per_channel(shift, channel, 0.0f),
                     per_channel(a, channel, 1.0f),     per_channel(b, channel, 0.0f),
                     per_channel(c, channel, 0.0f),     first_lanes(all(1.0f), live),
                     past};
                 parts[gate][b != nullptr][live < kLanes](walk, base, of);
               });
}

bool gradients_go_past(const EqMaps* dy, const EqMaps* dr, const EqSize& size) {
  return (dy == nullptr || maps_go_past(dy, size)) && (dr == nullptr || maps_go_past(dr, size));
}

void affine_backward(const EqMaps* dz, const EqMaps* y, const EqMaps* z, const float* scale,
                     const float* shift, const float* a, const float* b, const float* c,
                     const EqMaps* dy, const EqMaps* dr, const EqSize* size, int relu,
                     int threads) {
  affine_backward_to(dz, y, z, scale, shift, a, b, c, dy, dr, size, relu, threads,
                     gradients_go_past(dy, dr, *size));
}

}  // namespace
