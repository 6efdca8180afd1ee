// Normalisation by the batch's own statistics, a few channels at a time: what the first pass over
// a channel has read is still in the cache for the second one.

namespace {

// Channels that are done together: about as many numbers as half of a usual second-level cache.
constexpr int64_t kChannelLines = 4096;

// body(first, count) for chunks of channels, in parallel.
template <typename Body>
void for_channel_chunks(const EqSize& size, int threads, Body&& body) {
  const int64_t lines = blocks_of(size) * size.rows * size.columns;
  const int64_t chunk = lines >= kChannelLines ? 1 : (kChannelLines + lines - 1) / (lines + 1);
  parallel_for((size.channels + chunk - 1) / chunk, threads, [&](int64_t task) {
    const int64_t first = task * chunk, left = size.channels - first;
    body(first, left < chunk ? left : chunk);
  });
}

// The same maps from channel `first` on; null stays null.
struct Slice {
  EqMaps maps;
  bool there;
  Slice(const EqMaps* whole, int64_t first) : maps{}, there(whole != nullptr) {
    if (there) {
      maps = *whole;
      maps.data += first * maps.channel;
    }
  }
  const EqMaps* get() const { return there ? &maps : nullptr; }
};

EQ_INLINE float at(const float* values, int64_t i, float otherwise) {
  return values != nullptr ? values[i] : otherwise;
}

// What normalises some channels, from their statistics.
EQ_INLINE void scale_and_shift(int64_t first, int64_t count, const float* gamma, const float* beta,
                               double epsilon, const float* mean, const float* variance,
                               float* inverse, float* scale, float* shift) {
  for (int64_t c = first; c < first + count; ++c) {
    inverse[c] = static_cast<float>(1.0 / std::sqrt(variance[c] + epsilon));
    scale[c] = inverse[c] * at(gamma, c, 1.0f);
    shift[c] = at(beta, c, 0.0f) - mean[c] * scale[c];
  }
}

// b and c of dy = a * g + b * y + c, with a the scale.
struct Slope {
  float linear, constant;
};

// Of one channel, from the sums of g and of g * y; writes the gradients of gamma and beta.
EQ_INLINE Slope slope_of(double sum, double product, double numbers, float scale, float mean,
                         float inverse, float* d_gamma, float* d_beta) {
  const double gamma = (product - mean * sum) * inverse;
  const double per_number = -static_cast<double>(scale) * inverse * gamma / numbers;
  *d_gamma = static_cast<float>(gamma);
  *d_beta = static_cast<float>(sum);
  return {static_cast<float>(per_number),
          static_cast<float>(-scale * sum / numbers - per_number * mean)};
}

void normalise(const EqMaps* y, const EqMaps* residual, const EqMaps* z, const EqSize* size,
               const float* gamma, const float* beta, double epsilon, int relu, float* mean,
               float* variance, float* inverse, float* scale, float* shift, int threads) {
  const bool past = maps_go_past(z, *size);
  for_channel_chunks(*size, threads, [&](int64_t first, int64_t count) {
    const Slice ys(y, first), rs(residual, first), zs(z, first);
    EqSize part = *size;
    part.channels = count;
    statistics(ys.get(), &part, mean + first, variance + first, 1);
    scale_and_shift(first, count, gamma, beta, epsilon, mean, variance, inverse, scale, shift);
    affine_to(ys.get(), scale + first, shift + first, rs.get(), zs.get(), &part, relu, 1, past);
  });
}

void normalise_backward(const EqMaps* dz, const EqMaps* y, const EqMaps* z, const EqMaps* dy,
                        const EqMaps* dr, const EqSize* size, const float* scale,
                        const float* shift, const float* mean, const float* inverse, int relu,
                        float* d_gamma, float* d_beta, int threads) {
  const bool past = gradients_go_past(dy, dr, *size);
  const double numbers = static_cast<double>(size->samples) * size->rows * size->columns;
  for_channel_chunks(*size, threads, [&](int64_t first, int64_t count) {
    const Slice dzs(dz, first), ys(y, first), zs(z, first), dys(dy, first), drs(dr, first);
    EqSize part = *size;
    part.channels = count;
    constexpr int64_t kFew = 64;
    double sums[kFew], products[kFew];
    float linear[kFew], constant[kFew];
    // Chunks of many small channels are cut again, so that the sums need no memory of their own.
    for (int64_t begin = 0; begin < count; begin += kFew) {
      const int64_t few = count - begin < kFew ? count - begin : kFew, c0 = first + begin;
      const Slice d(dzs.get(), begin), v(ys.get(), begin), o(zs.get(), begin);
      const Slice dv(dys.get(), begin), de(drs.get(), begin);
      part.channels = few;
      affine_sums(d.get(), v.get(), o.get(), scale + c0, shift + c0, &part, relu, sums, products,
                  1);
      for (int64_t i = 0; i < few; ++i) {
        const int64_t c = c0 + i;
        const Slope slope = slope_of(sums[i], products[i], numbers, scale[c], mean[c], inverse[c],
                                     d_gamma + c, d_beta + c);
        linear[i] = slope.linear;
        constant[i] = slope.constant;
      }
      affine_backward_to(d.get(), v.get(), o.get(), scale + c0, shift + c0, scale + c0, linear,
                         constant, dv.get(), de.get(), &part, relu, 1, past);
    }
  });
}

}  // namespace
