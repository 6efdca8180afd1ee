// The table of kernels: one for each instruction set, chosen when the library is loaded.
#pragma once
#include "tensors.h"

// A sparse linear map between maps, written as shifts. For every row of the list (an output
// channel, or an output channel at one position) and every output position p
//   out[row][p] = sum over its entries of weight * in[offset + p]
// The entries are cut into blocks of input channels so that what they read stays in a cache, and
// within a row of a block by the row of the map that they read, so that those that would read
// outside of it are left out: entry k belongs to tap t of row r of block b if
// starts[(b * rows + r) * taps + t] <= k < the next start.
// `group` consecutive rows are computed together. Four of them share their entries: an entry has one
// weight for each, zero where it is missing. Two of them share what both have: a pair of rows has
// three parts, the entries with two weights and then those of either row, and k belongs to part p if
// starts[((b * rows + r) * 3 + p) * taps + t] <= k < the next start.
struct EqList {
  const int32_t* starts;
  const int32_t* slots;     // for pairs, at the same places: the number of weights before an entry
  const int32_t* tap_rows;  // [taps], ascending: which row is read, seen from the position's
  const int32_t* offsets;   // in floats, times `scale`
  const int32_t* sources;   // of every weight: where in the layer's values; -1 for a zero
  int64_t rows;             // counted in groups
  int64_t blocks, taps, entries, weights, group;
  int64_t scale;
  int64_t repeats;  // whether a weight may stand in several entries
};

// Where a list reads and writes: `outer` independent pieces of `rows` x `columns` positions each.
struct EqGrid {
  int64_t outer, rows, columns;
  int64_t in_outer, in_row, in_column;     // strides of the read positions
  int64_t out_outer, out_row, out_column;  // strides of the written positions
  int64_t out_channel;                     // stride between the rows of the list
  int64_t in_rows;      // rows of the maps that are read, without borders; 0 if no tap is left out
  int64_t in_step;      // how many of them lie between two rows of positions
  int64_t in_map_row;   // stride of one of them
  int64_t in_channels, in_channel;         // how many channels are read, and their stride
  int64_t last_row;                        // rows of the list that exist, ungrouped
  int32_t tile_rows, tile_columns;         // positions held in registers
  int32_t threads;
  int32_t ahead;  // whether to fetch what the next rows of positions will read
};

struct EqKernels {
  // out = list applied to in. Writes every position of every row; borders are not touched.
  void (*apply)(const EqList*, const EqGrid*, const float* values, const float* in, float* out);
  // gradient[source] = sum over positions of out_gradient[row][p] * in[offset + p].
  // Written, not added to; sources that no entry names are not touched.
  void (*weight_gradient)(const EqList*, const EqGrid*, const float* in, const float* out_gradient,
                          float* gradient);

  // x is any strided tensor of size.samples x channels x rows x columns, strides in floats.
  void (*to_maps)(const float* x, const int64_t* strides, const EqMaps* out, const EqSize*,
                  int threads);
  void (*from_maps)(const EqMaps* maps, float* x, const int64_t* strides, const EqSize*,
                    int threads);
  void (*copy_maps)(const EqMaps* from, const EqMaps* to, const EqSize*, int threads);

  // Mean and biased variance of every channel over samples and positions, added up in double.
  void (*statistics)(const EqMaps* y, const EqSize*, float* mean, float* variance, int threads);
  // z = f(scale * y + shift + residual), f = relu or identity. scale and shift are per channel and
  // null for 1 and 0; residual may be null. z may be y or the residual.
  void (*affine)(const EqMaps* y, const float* scale, const float* shift, const EqMaps* residual,
                 const EqMaps* z, const EqSize*, int relu, int threads);
  // With g = dz, or dz where z > 0 if relu: sums[c] = sum of g, products[c] = sum of g * y, in
  // double. z may be null: then z > 0 is found from scale * y + shift.
  void (*affine_sums)(const EqMaps* dz, const EqMaps* y, const EqMaps* z, const float* scale,
                      const float* shift, const EqSize*, int relu, double* sums, double* products,
                      int threads);
  // dy = a * g + b * y + c per channel (a null for 1, b and c null for 0), and dr = g if dr is not
  // null. dy may be null. g as above.
  void (*affine_backward)(const EqMaps* dz, const EqMaps* y, const EqMaps* z, const float* scale,
                          const float* shift, const float* a, const float* b, const float* c,
                          const EqMaps* dy, const EqMaps* dr, const EqSize*, int relu, int threads);

  // statistics and affine in one, a few channels at a time: scale and shift come from the batch's
  // mean and variance, gamma and beta (null for 1 and 0). All five arrays are written.
  void (*normalise)(const EqMaps* y, const EqMaps* residual, const EqMaps* z, const EqSize*,
                    const float* gamma, const float* beta, double epsilon, int relu, float* mean,
                    float* variance, float* inverse_deviation, float* scale, float* shift,
                    int threads);
  // Its backward pass; dy or dr may be null. z may be null, as in affine_sums.
  void (*normalise_backward)(const EqMaps* dz, const EqMaps* y, const EqMaps* z, const EqMaps* dy,
                             const EqMaps* dr, const EqSize*, const float* scale,
                             const float* shift, const float* mean,
                             const float* inverse_deviation, int relu, float* d_gamma,
                             float* d_beta, int threads);

  // Windows: kernel, stride and padding for rows, then columns: 6 numbers. `size` is that of the
  // input, `out_rows` and `out_columns` that of the output.
  void (*max_pool)(const EqMaps* x, const EqMaps* out, const EqSize* size, int64_t out_rows,
                   int64_t out_columns, const int64_t* window, int threads);
  // The gradient goes to the first largest position of each window in row-major order, as torch's.
  void (*max_pool_backward)(const EqMaps* x, const EqMaps* d_out, const EqMaps* dx,
                            const EqSize* size, int64_t out_rows, int64_t out_columns,
                            const int64_t* window, int threads);
  // Means over windows; padded positions count if count_padding.
  void (*average_pool)(const EqMaps* x, const EqMaps* out, const EqSize* size, int64_t out_rows,
                       int64_t out_columns, const int64_t* window, int count_padding, int threads);
  void (*average_pool_backward)(const EqMaps* d_out, const EqMaps* dx, const EqSize* size,
                                int64_t out_rows, int64_t out_columns, const int64_t* window,
                                int count_padding, int threads);

  // normalise with a rectifier, then the maxima over tiles of 2 x 2: z has half the rows and columns
  // of y, which are even, and `size` is that of y.
  void (*normalise_pool)(const EqMaps* y, const EqMaps* z, const EqSize*, const float* gamma,
                         const float* beta, double epsilon, float* mean, float* variance,
                         float* inverse_deviation, float* scale, float* shift, int threads);
  // Its backward pass; dy may be null.
  void (*normalise_pool_backward)(const EqMaps* dz, const EqMaps* y, const EqMaps* dy,
                                  const EqSize*, const float* scale, const float* shift,
                                  const float* mean, const float* inverse_deviation,
                                  float* d_gamma, float* d_beta, int threads);
};

const EqKernels* eq_kernels_portable();
#if defined(__x86_64__)
const EqKernels* eq_kernels_avx2();
const EqKernels* eq_kernels_avx512();
#endif
