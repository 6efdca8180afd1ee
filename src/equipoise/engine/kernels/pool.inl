// Largest values and means over windows. Windows are clipped to the map: the border stands for
// zeros, and padding may be wider than it.
#include "walk.inl"

namespace {

struct Window {
  int64_t kernel, stride, padding;
};

struct Windows {
  Window rows, columns;
  int64_t out_rows, out_columns;
};

EQ_INLINE Windows windows_of(const int64_t* window, int64_t out_rows, int64_t out_columns) {
  return {{window[0], window[1], window[2]},
          {window[3], window[4], window[5]},
          out_rows,
          out_columns};
}

// Whether windows lie side by side, all of them inside of the map.
EQ_INLINE bool are_tiles(const Windows& of, const EqSize& size) {
  const Window &rows = of.rows, &columns = of.columns;
  return rows.kernel == rows.stride && columns.kernel == columns.stride && rows.padding == 0 &&
         columns.padding == 0 && of.out_rows * rows.kernel <= size.rows &&
         of.out_columns * columns.kernel <= size.columns;
}

// A window along one axis: what lies in the map, and its size with the padding.
struct Span {
  int64_t begin, end, padded;
};

EQ_INLINE Span clipped(const Window& window, int64_t at, int64_t extent) {
  const int64_t begin = at * window.stride - window.padding, end = begin + window.kernel;
  const int64_t last = end < extent + window.padding ? end : extent + window.padding;
  return {begin > 0 ? begin : 0, end < extent ? end : extent, last - begin};
}

// Rows and columns of a clipped window; zero for sides that are known at run time only.
template <int Rows, int Columns>
struct Sides {
  int64_t run_rows, run_columns;
  int64_t rows() const { return Rows > 0 ? Rows : run_rows; }
  int64_t columns() const { return Columns > 0 ? Columns : run_columns; }
};

// Calls body with the sides of a window, for the usual ones as constants.
template <typename Body>
EQ_INLINE void with_sides(Span rows, Span columns, Body&& body) {
  const int64_t height = rows.end - rows.begin, width = columns.end - columns.begin;
  if (height == 2 && width == 2) {
    body(Sides<2, 2>{2, 2});
  } else if (height == 3 && width == 3) {
    body(Sides<3, 3>{3, 3});
  } else {
    body(Sides<0, 0>{height, width});
  }
}

// The strides of maps, by value: no store can change them behind the compiler's back.
struct Strides {
  int64_t block, row, column;
};

EQ_INLINE Strides strides_of(const EqMaps& maps) { return {maps.block, maps.row, maps.column}; }

// body(block, channel, count) for `count` blocks from `block` on, in parallel: all blocks at once
// where they lie side by side, else one.
template <typename Body>
void for_planes(const EqMaps& maps, const EqSize& size, int threads, Body&& body) {
  const int64_t blocks = blocks_of(size), plane_lines = size.rows * size.columns;
  if (has_blocks_inside(maps)) {
    for_units(size.channels, blocks * plane_lines, threads,
              [&](int64_t channel) { body(0, channel, blocks); });
  } else {
    for_units(blocks * size.channels, plane_lines, threads,
              [&](int64_t unit) { body(unit / size.channels, unit % size.channels, 1); });
  }
}

// The larger one, or NaN if one of them is.
EQ_INLINE Line max_or_nan(Line a, Line b) { return where_equal(a, a, max(a, b), a); }

// The largest number so far and where it was.
struct Largest {
  Line value, place;
};

// NaN is larger than all, and a later NaN than an earlier one, as in torch.
EQ_INLINE Largest larger(const Largest& so_far, Line x, Line place) {
  const Line greater = where_greater(x, so_far.value, place, so_far.place);
  return {max_or_nan(so_far.value, x), where_equal(x, x, greater, place)};
}

template <typename S>
EQ_INLINE Line largest_of(const float* x, const Strides& step, S sides) {
  Line largest = all(-INFINITY);
  for (int64_t i = 0; i < sides.rows(); ++i) {
    Line row = load(x + i * step.row);  // each row on its own, as a long chain would be slow
    for (int64_t j = 1; j < sides.columns(); ++j) {
      row = max_or_nan(row, load(x + i * step.row + j * step.column));
    }
    largest = max_or_nan(largest, row);
  }
  return largest;
}

// Where the largest number of a window is, counted in row-major order.
template <typename S>
EQ_INLINE Line place_of_largest(const float* x, const Strides& step, S sides) {
  Largest largest = {load(x), zero()};
  float place = 0.0f;
  for (int64_t i = 0; i < sides.rows(); ++i) {
    for (int64_t j = 0; j < sides.columns(); ++j, place += 1.0f) {
      largest = larger(largest, load(x + i * step.row + j * step.column), all(place));
    }
  }
  return largest.place;
}

template <typename S>
EQ_INLINE Line sum_of(const float* x, const Strides& step, S sides) {
  Line total = zero();
  for (int64_t i = 0; i < sides.rows(); ++i) {
    const float* p = x + i * step.row;
    // Two chains of additions, each row on its own: a long one would be slow and lose digits.
    Line even = zero(), odd = zero();
    int64_t j = 0;
    for (; j + 2 <= sides.columns(); j += 2) {
      even = add(even, load(p + j * step.column));
      odd = add(odd, load(p + (j + 1) * step.column));
    }
    if (j < sides.columns()) even = add(even, load(p + j * step.column));
    total = add(total, add(even, odd));
  }
  return total;
}

// body(rows, columns, out offset) for every window of a plane, in row-major order.
template <typename Body>
EQ_INLINE void for_windows(const Windows& windows, int64_t rows, int64_t columns, Strides out,
                           Body&& body) {
  const Windows of = windows;
  for (int64_t r = 0; r < of.out_rows; ++r) {
    const Span row_span = clipped(of.rows, r, rows);
    for (int64_t c = 0; c < of.out_columns; ++c) {
      body(row_span, clipped(of.columns, c, columns), r * out.row + c * out.column);
    }
  }
}

void max_pool(const EqMaps* x, const EqMaps* out, const EqSize* size, int64_t out_rows,
              int64_t out_columns, const int64_t* window, int threads) {
  const Windows of = windows_of(window, out_rows, out_columns);
  const Strides step = strides_of(*x), out_step = strides_of(*out);
  const int64_t all_rows = size->rows, all_columns = size->columns;
  for_planes(*x, *size, threads, [=](int64_t block, int64_t channel, int64_t count) {
    const float* from = plane(x, block, channel);
    float* to = plane(out, block, channel);
    for_windows(of, all_rows, all_columns, out_step, [=](Span rows, Span columns, int64_t at) {
      const float* p = from + rows.begin * step.row + columns.begin * step.column;
      with_sides(rows, columns, [=](auto sides) {
        for (int64_t b = 0; b < count; ++b) {
          store(to + at + b * out_step.block, largest_of(p + b * step.block, step, sides));
        }
      });
    });
  });
}

// Zeros for the rows and columns from `row` and `column` on.
void clear(float* maps, Strides step, int64_t row, int64_t rows, int64_t column, int64_t columns,
           int64_t count) {
  for (int64_t i = row; i < rows; ++i) {
    for (int64_t j = column; j < columns; ++j) {
      for (int64_t b = 0; b < count; ++b) {
        store(maps + i * step.row + j * step.column + b * step.block, zero());
      }
    }
  }
}

// What lies behind the last tile.
void clear_rest(float* maps, Strides step, const Windows& of, const EqSize& size, int64_t count) {
  const int64_t rows = of.out_rows * of.rows.stride, columns = of.out_columns * of.columns.stride;
  clear(maps, step, 0, rows, columns, size.columns, count);
  clear(maps, step, rows, size.rows, 0, size.columns, count);
}

// Writes the gradient of one plane: value(sides, rows, columns, at, b) is called for every window
// and gives a callable whose (i, j) is the gradient for row i and column j of the window. Tiles
// are stored, other windows are added to zeros.
template <bool Tiles, typename Value>
EQ_INLINE void spread(const Windows& of, const EqSize& size, Strides out_step, float* dx,
                      Strides step, int64_t count, bool past, Value&& value) {
  const int64_t all_rows = size.rows, all_columns = size.columns;
  int64_t cleared = 0;
  for_windows(of, all_rows, all_columns, out_step, [&](Span rows, Span columns, int64_t at) {
    if (!Tiles && rows.end > cleared) {
      clear(dx, step, cleared, rows.end, 0, all_columns, count);
      cleared = rows.end;
    }
    float* q = dx + rows.begin * step.row + columns.begin * step.column;
    with_sides(rows, columns, [=](auto sides) {
      for (int64_t b = 0; b < count; ++b) {
        const auto part = value(sides, rows, columns, at, b);
        for (int64_t i = 0; i < sides.rows(); ++i) {
          for (int64_t j = 0; j < sides.columns(); ++j) {
            float* target = q + b * step.block + i * step.row + j * step.column;
            if (Tiles) {
              put(target, part(i, j), past);
            } else {
              store(target, add(load(target), part(i, j)));
            }
          }
        }
      }
    });
  });
  if (Tiles) {
    clear_rest(dx, step, of, size, count);
    if (past) settle();
  } else {
    clear(dx, step, cleared, all_rows, 0, all_columns, count);
  }
}

template <bool Tiles>
void max_pool_backward_plane(const Windows& of, const EqSize& size, const float* x, Strides x_step,
                             const float* d_out, Strides out_step, float* dx, Strides step,
                             int64_t count, bool past) {
  auto value = [=](auto sides, Span rows, Span columns, int64_t at, int64_t b) {
    const float* p = x + rows.begin * x_step.row + columns.begin * x_step.column;
    const Line place = place_of_largest(p + b * x_step.block, x_step, sides);
    const Line gradient = load(d_out + at + b * out_step.block);
    return [=](int64_t i, int64_t j) {
      const Line here = all(static_cast<float>(i * sides.columns() + j));
      return where_equal(place, here, gradient, zero());
    };
  };
  spread<Tiles>(of, size, out_step, dx, step, count, past, value);
}

void max_pool_backward(const EqMaps* x, const EqMaps* d_out, const EqMaps* dx, const EqSize* size,
                       int64_t out_rows, int64_t out_columns, const int64_t* window, int threads) {
  const Windows of = windows_of(window, out_rows, out_columns);
  const bool past = maps_go_past(dx, *size);
  const auto each = are_tiles(of, *size) ? max_pool_backward_plane<true>
                                         : max_pool_backward_plane<false>;
  for_planes(*x, *size, threads, [=](int64_t block, int64_t channel, int64_t count) {
    each(of, *size, plane(x, block, channel), strides_of(*x), plane(d_out, block, channel),
         strides_of(*d_out), plane(dx, block, channel), strides_of(*dx), count, past);
  });
}

// One over how many positions count for the mean.
EQ_INLINE Line share_of(Span rows, Span columns, bool count_padding) {
  const int64_t count = count_padding
                            ? rows.padded * columns.padded
                            : (rows.end - rows.begin) * (columns.end - columns.begin);
  return all(1.0f / static_cast<float>(count));
}

void average_pool(const EqMaps* x, const EqMaps* out, const EqSize* size, int64_t out_rows,
                  int64_t out_columns, const int64_t* window, int count_padding, int threads) {
  const Windows of = windows_of(window, out_rows, out_columns);
  const Strides step = strides_of(*x), out_step = strides_of(*out);
  const int64_t all_rows = size->rows, all_columns = size->columns;
  for_planes(*x, *size, threads, [=](int64_t block, int64_t channel, int64_t count) {
    const float* from = plane(x, block, channel);
    float* to = plane(out, block, channel);
    for_windows(of, all_rows, all_columns, out_step, [=](Span rows, Span columns, int64_t at) {
      const float* p = from + rows.begin * step.row + columns.begin * step.column;
      const Line share = share_of(rows, columns, count_padding != 0);
      with_sides(rows, columns, [=](auto sides) {
        for (int64_t b = 0; b < count; ++b) {
          const Line total = sum_of(p + b * step.block, step, sides);
          store(to + at + b * out_step.block, mul(total, share));
        }
      });
    });
  });
}

template <bool Tiles>
void average_pool_backward_plane(const Windows& of, const EqSize& size, bool count_padding,
                                 const float* d_out, Strides out_step, float* dx, Strides step,
                                 int64_t count, bool past) {
  auto value = [=](auto, Span rows, Span columns, int64_t at, int64_t b) {
    const Line share = share_of(rows, columns, count_padding);
    const Line gradient = mul(load(d_out + at + b * out_step.block), share);
    return [=](int64_t, int64_t) { return gradient; };
  };
  spread<Tiles>(of, size, out_step, dx, step, count, past, value);
}

void average_pool_backward(const EqMaps* d_out, const EqMaps* dx, const EqSize* size,
                           int64_t out_rows, int64_t out_columns, const int64_t* window,
                           int count_padding, int threads) {
  const Windows of = windows_of(window, out_rows, out_columns);
  const bool past = maps_go_past(dx, *size);
  const auto each = are_tiles(of, *size) ? average_pool_backward_plane<true>
                                         : average_pool_backward_plane<false>;
  for_planes(*dx, *size, threads, [=](int64_t block, int64_t channel, int64_t count) {
    each(of, *size, count_padding != 0, plane(d_out, block, channel), strides_of(*d_out),
         plane(dx, block, channel), strides_of(*dx), count, past);
  });
}

}  // namespace
