// Tiles of positions held in registers, and the choice among them.
//
// A tile of R x C positions of G rows of the list keeps G * R * C lines in registers, so its loops
// must be unrolled at compile time: each shape is a function of its own. Column strides of one and
// two lines, which nearly all layers have, become constants too.

namespace {

struct TileShape {
  int group, rows, columns;
};

// M(group, rows, columns) for every shape that has a function, smaller areas first.
#define EQ_TILE_SHAPES(M)                                                                     \
  M(1, 1, 1) M(1, 1, 2) M(1, 2, 1) M(1, 2, 2) M(1, 1, 4) M(1, 4, 1) M(1, 1, 6) M(1, 2, 3)     \
  M(1, 1, 8) M(1, 2, 4) M(1, 4, 2) M(1, 1, 16) M(1, 2, 8) M(1, 4, 4) M(1, 4, 6)               \
  M(2, 1, 1) M(2, 1, 2) M(2, 2, 2) M(2, 1, 4) M(2, 1, 8) M(2, 2, 4)                           \
  M(4, 1, 1) M(4, 1, 2) M(4, 1, 3) M(4, 2, 2) M(4, 1, 4) M(4, 1, 6) M(4, 2, 3)

constexpr bool fits(int group, int rows, int columns) {
  return group * rows * columns <= kRegisterLines;
}

// Distance between columns in floats: a constant for one or two lines, else the given one.
template <int Step>
EQ_INLINE int64_t column_step(int64_t given) {
  return Step > 0 ? Step * kLanes : given;
}

// Start of tile i along a side: the last tile is moved back so that it ends with the side.
EQ_INLINE int64_t tile_start(int64_t i, int64_t tile, int64_t side) {
  int64_t start = i * tile;
  return start + tile <= side ? start : side - tile;
}

EQ_INLINE int64_t tiles_in(int64_t side, int64_t tile) { return (side + tile - 1) / tile; }

// Memory of one thread that is kept from call to call.
struct Scratch {
  float* data = nullptr;
  size_t size = 0;
  float* at_least(size_t wanted) {
    if (wanted > size) {
      std::free(data);
      size = wanted + wanted / 4;
      size_t bytes = (size * sizeof(float) + 127) / 64 * 64;
      data = static_cast<float*>(std::aligned_alloc(64, bytes));
    }
    return data;
  }
  ~Scratch() { std::free(data); }
};

}  // namespace
