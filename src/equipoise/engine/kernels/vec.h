// One line: the same number for 16 samples of a batch, in whatever registers the processor has.
//
// Every file that includes this is compiled once for each instruction set, with EQ_ISA naming the
// one in use, so nothing here may have external linkage.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if EQ_ISA == 512 || EQ_ISA == 256
#include <immintrin.h>
#endif

#define EQ_INLINE static inline __attribute__((always_inline))
#define EQ_INLINE_MEMBER inline __attribute__((always_inline))
#if defined(__clang__)
#define EQ_UNROLL _Pragma("unroll")
#else
#define EQ_UNROLL _Pragma("GCC unroll 32")
#endif

namespace {

constexpr int kLanes = 16;

#if EQ_ISA == 512

constexpr int kRegisterLines = 24;  // accumulators that fit beside what an inner loop needs
struct Line {
  __m512 v;
};
EQ_INLINE Line zero() { return {_mm512_setzero_ps()}; }
EQ_INLINE Line all(float a) { return {_mm512_set1_ps(a)}; }
EQ_INLINE Line load(const float* p) { return {_mm512_loadu_ps(p)}; }
EQ_INLINE void store(float* p, Line a) { _mm512_storeu_ps(p, a.v); }
EQ_INLINE void store_past(float* p, Line a) { _mm512_stream_ps(p, a.v); }
EQ_INLINE Line add(Line a, Line b) { return {_mm512_add_ps(a.v, b.v)}; }
EQ_INLINE Line sub(Line a, Line b) { return {_mm512_sub_ps(a.v, b.v)}; }
EQ_INLINE Line mul(Line a, Line b) { return {_mm512_mul_ps(a.v, b.v)}; }
// a * b + c, rounded once.
EQ_INLINE Line fma(Line a, Line b, Line c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// The larger one; b where either is NaN.
EQ_INLINE Line max(Line a, Line b) { return {_mm512_max_ps(a.v, b.v)}; }
// yes where a > b, else no.
EQ_INLINE Line where_greater(Line a, Line b, Line yes, Line no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ), no.v, yes.v)};
}
// yes where a == b, else no.
EQ_INLINE Line where_equal(Line a, Line b, Line yes, Line no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ), no.v, yes.v)};
}
EQ_INLINE float sum(Line a) { return _mm512_reduce_add_ps(a.v); }
// out[i] += the sum of the lanes of a[i], for four lines at a time.
EQ_INLINE void add_sums4(float* out, Line a, Line b, Line c, Line d) {
  // Pairs within 128-bit lanes first, so that one register holds all four sums.
  __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a.v, b.v), _mm512_unpackhi_ps(a.v, b.v));
  __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c.v, d.v), _mm512_unpackhi_ps(c.v, d.v));
  __m512 t = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));
  __m256 h = _mm256_add_ps(_mm512_castps512_ps256(t), _mm512_extractf32x8_ps(t, 1));
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(out), s));
}

#elif EQ_ISA == 256

constexpr int kRegisterLines = 6;
struct Line {
  __m256 a, b;
};
EQ_INLINE Line zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
EQ_INLINE Line all(float x) {
  __m256 v = _mm256_set1_ps(x);
  return {v, v};
}
EQ_INLINE Line load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
EQ_INLINE void store(float* p, Line x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
EQ_INLINE void store_past(float* p, Line x) {
  _mm256_stream_ps(p, x.a);
  _mm256_stream_ps(p + 8, x.b);
}
EQ_INLINE Line add(Line x, Line y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
EQ_INLINE Line sub(Line x, Line y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
EQ_INLINE Line mul(Line x, Line y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
EQ_INLINE Line fma(Line x, Line y, Line z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
EQ_INLINE Line max(Line x, Line y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
EQ_INLINE Line where_greater(Line x, Line y, Line yes, Line no) {
  return {_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ)),
          _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ))};
}
EQ_INLINE Line where_equal(Line x, Line y, Line yes, Line no) {
  return {_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(x.a, y.a, _CMP_EQ_OQ)),
          _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(x.b, y.b, _CMP_EQ_OQ))};
}
EQ_INLINE float sum(Line x) {
  __m256 v = _mm256_add_ps(x.a, x.b);
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
EQ_INLINE void add_sums4(float* out, Line a, Line b, Line c, Line d) {
  __m256 ab = _mm256_hadd_ps(_mm256_add_ps(a.a, a.b), _mm256_add_ps(b.a, b.b));
  __m256 cd = _mm256_hadd_ps(_mm256_add_ps(c.a, c.b), _mm256_add_ps(d.a, d.b));
  __m256 t = _mm256_hadd_ps(ab, cd);
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(out), s));
}

#else  // any processor: the compiler's own vectors of four

constexpr int kRegisterLines = 4;
typedef float Quad __attribute__((vector_size(16)));
typedef int32_t QuadMask __attribute__((vector_size(16)));
struct Line {
  Quad q[4];
};
#define EQ_QUADS for (int i = 0; i < 4; ++i)
EQ_INLINE Line all(float x) {
  Line r;
  EQ_UNROLL EQ_QUADS r.q[i] = Quad{x, x, x, x};
  return r;
}
EQ_INLINE Line zero() { return all(0.0f); }
EQ_INLINE Line load(const float* p) {
  Line r;
  std::memcpy(&r, p, sizeof r);
  return r;
}
EQ_INLINE void store(float* p, Line x) { std::memcpy(p, &x, sizeof x); }
EQ_INLINE void store_past(float* p, Line x) { store(p, x); }
EQ_INLINE Line add(Line x, Line y) {
  EQ_UNROLL EQ_QUADS x.q[i] += y.q[i];
  return x;
}
EQ_INLINE Line sub(Line x, Line y) {
  EQ_UNROLL EQ_QUADS x.q[i] -= y.q[i];
  return x;
}
EQ_INLINE Line mul(Line x, Line y) {
  EQ_UNROLL EQ_QUADS x.q[i] *= y.q[i];
  return x;
}
EQ_INLINE Line fma(Line x, Line y, Line z) {
  EQ_UNROLL EQ_QUADS z.q[i] += x.q[i] * y.q[i];
  return z;
}
EQ_INLINE Quad choose(QuadMask m, Quad yes, Quad no) {
  return (Quad)((m & (QuadMask)yes) | (~m & (QuadMask)no));
}
EQ_INLINE Line max(Line x, Line y) {
  EQ_UNROLL EQ_QUADS x.q[i] = choose(x.q[i] > y.q[i], x.q[i], y.q[i]);
  return x;
}
EQ_INLINE Line where_greater(Line x, Line y, Line yes, Line no) {
  EQ_UNROLL EQ_QUADS x.q[i] = choose(x.q[i] > y.q[i], yes.q[i], no.q[i]);
  return x;
}
EQ_INLINE Line where_equal(Line x, Line y, Line yes, Line no) {
  EQ_UNROLL EQ_QUADS x.q[i] = choose(x.q[i] == y.q[i], yes.q[i], no.q[i]);
  return x;
}
EQ_INLINE float sum(Line x) {
  Quad s = (x.q[0] + x.q[1]) + (x.q[2] + x.q[3]);
  return (s[0] + s[1]) + (s[2] + s[3]);
}
EQ_INLINE void add_sums4(float* out, Line a, Line b, Line c, Line d) {
  out[0] += sum(a);
  out[1] += sum(b);
  out[2] += sum(c);
  out[3] += sum(d);
}

#endif

// Stores past the caches (`store_past`) save reading what they overwrite, and keep their speed where
// lines are left out, as at borders. They need whole lines: addresses that are multiples of 64.
// Behind a convolution they pay where so much is written that a cache would not keep it; a pass that
// does little but read and write gains earlier.
constexpr int64_t kConvolutionPastBytes = 24 << 20, kPassPastBytes = 6 << 20;

EQ_INLINE bool goes_past(const float* p, int64_t lines, int64_t least_bytes) {
  return lines * kLanes * static_cast<int64_t>(sizeof(float)) >= least_bytes &&
         reinterpret_cast<uintptr_t>(p) % 64 == 0;
}

// Makes them visible to other threads.
EQ_INLINE void settle() {
#if EQ_ISA == 512 || EQ_ISA == 256
  _mm_sfence();
#endif
}

// The first n lanes of a, the others zero.
EQ_INLINE Line first_lanes(Line a, int n) {
  if (n >= kLanes) return a;
  alignas(64) float t[kLanes];
  store(t, a);
  for (int i = n; i < kLanes; ++i) t[i] = 0.0f;
  return load(t);
}

}  // namespace
