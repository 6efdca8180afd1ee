// What crosses the border between Python and the kernels: plain structs of pointers and numbers.
#pragma once
#include <cstdint>

// A batch of feature maps. Samples are grouped in blocks of 16, and the 16 numbers of a block for
// one channel and position lie side by side (a line). `data` points at channel 0, row 0, column 0
// of block 0; a zero border around each map lies at negative and too large rows and columns.
// Strides are counted in floats. Lanes without a sample, and the border, are always zero.
struct EqMaps {
  float* data;
  int64_t block, channel, row, column;
};

struct EqSize {
  int64_t samples, channels, rows, columns;
};
