// Turning 16 x 16 numbers, which is how samples that lie apart become lines and back.
#pragma once
#include "vec.h"

namespace {

#if EQ_ISA == 512

// to(i)[k] = from(k)[i], where from and to give pointers; none of the 32 lines may overlap.
template <typename From, typename To>
EQ_INLINE void transpose(From&& from, To&& to) {
  __m512 u[kLanes];  // the 4 x 4 pieces turned, each where it was
  EQ_UNROLL for (int i = 0; i < kLanes; i += 4) {
    __m512 p = _mm512_loadu_ps(from(i)), q = _mm512_loadu_ps(from(i + 1));
    __m512 r = _mm512_loadu_ps(from(i + 2)), s = _mm512_loadu_ps(from(i + 3));
    __m512 a = _mm512_unpacklo_ps(p, q), b = _mm512_unpackhi_ps(p, q);
    __m512 c = _mm512_unpacklo_ps(r, s), d = _mm512_unpackhi_ps(r, s);
    u[i] = _mm512_shuffle_ps(a, c, 0x44);
    u[i + 1] = _mm512_shuffle_ps(a, c, 0xEE);
    u[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
    u[i + 3] = _mm512_shuffle_ps(b, d, 0xEE);
  }
  EQ_UNROLL for (int i = 0; i < 4; ++i) {  // then the pieces change places
    __m512 a = _mm512_shuffle_f32x4(u[i], u[i + 4], 0x88);
    __m512 b = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0x88);
    __m512 c = _mm512_shuffle_f32x4(u[i], u[i + 4], 0xDD);
    __m512 d = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0xDD);
    _mm512_storeu_ps(to(i), _mm512_shuffle_f32x4(a, b, 0x88));
    _mm512_storeu_ps(to(i + 4), _mm512_shuffle_f32x4(c, d, 0x88));
    _mm512_storeu_ps(to(i + 8), _mm512_shuffle_f32x4(a, b, 0xDD));
    _mm512_storeu_ps(to(i + 12), _mm512_shuffle_f32x4(c, d, 0xDD));
  }
}

#elif EQ_ISA == 256

// One quarter at a time, which is what the registers hold: that from row and column on.
template <typename From, typename To>
EQ_INLINE void transpose8(From&& from, int column, To&& to, int row) {
  __m256 t[8], u[8];
  EQ_UNROLL for (int i = 0; i < 8; i += 2) {
    __m256 p = _mm256_loadu_ps(from(row + i) + column);
    __m256 q = _mm256_loadu_ps(from(row + i + 1) + column);
    t[i] = _mm256_unpacklo_ps(p, q);
    t[i + 1] = _mm256_unpackhi_ps(p, q);
  }
  EQ_UNROLL for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
  EQ_UNROLL for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to(column + i) + row, _mm256_permute2f128_ps(u[i], u[i + 4], 0x20));
    _mm256_storeu_ps(to(column + i + 4) + row, _mm256_permute2f128_ps(u[i], u[i + 4], 0x31));
  }
}
template <typename From, typename To>
EQ_INLINE void transpose(From&& from, To&& to) {
  transpose8(from, 0, to, 0);
  transpose8(from, 8, to, 0);
  transpose8(from, 0, to, 8);
  transpose8(from, 8, to, 8);
}

#else

template <typename From, typename To>
EQ_INLINE void transpose(From&& from, To&& to) {
  EQ_UNROLL for (int i = 0; i < kLanes; i += 4) {
    EQ_UNROLL for (int j = 0; j < kLanes; j += 4) {
      Quad q[4];
      EQ_UNROLL for (int k = 0; k < 4; ++k) std::memcpy(&q[k], from(i + k) + j, sizeof q[k]);
      EQ_UNROLL for (int k = 0; k < 4; ++k) {
        Quad turned = {q[0][k], q[1][k], q[2][k], q[3][k]};
        std::memcpy(to(j + k) + i, &turned, sizeof turned);
      }
    }
  }
}

#endif

}  // namespace
