// How maps are made from tensors and back, and copied.
#include "transpose.h"
#include "walk.inl"

namespace {

void copy_maps(const EqMaps* from, const EqMaps* to, const EqSize* size, int threads) {
  const Operands<2> operands = {{from, to}};
  for_parts<2>(operands, *size, threads,
               [&](const Walk<2>& walk, float* const(&base)[2], int64_t, int) {
                 const int64_t step_from = walk.step[0][2], step_to = walk.step[1][2];
                 for_runs<2>(walk, base, [&](float* const(&at)[2], int64_t count) {
                   const float* source = at[0];
                   float* target = at[1];
                   for (int64_t i = 0; i < count; ++i, source += step_from, target += step_to) {
                     store(target, load(source));
                   }
                 });
               });
}

// One axis of the numbers of a sample: its stride in a tensor and in maps.
struct Axis {
  int64_t extent, tensor, maps;
};

// The numbers of one sample as `runs` runs of `length` numbers that lie side by side in the
// tensor. A run has up to three axes, the innermost first, and so has the order of the runs.
struct Sample {
  Axis in_run[3], between[3];
  int64_t length, runs;
};

EQ_INLINE void sort_axes(Axis* axes, int count) {
  auto later = [](const Axis& a, const Axis& b) {  // repeated numbers (stride 0) come last
    return b.tensor != 0 && (a.tensor == 0 || a.tensor > b.tensor);
  };
  for (int i = 1; i < count; ++i) {
    for (int j = i; j > 0 && later(axes[j - 1], axes[j]); --j) {
      const Axis moved = axes[j];
      axes[j] = axes[j - 1];
      axes[j - 1] = moved;
    }
  }
}

Sample sample_of(const int64_t* strides, const EqMaps& maps, const EqSize& size) {
  const Axis all_axes[3] = {{size.columns, strides[3], maps.column},
                            {size.rows, strides[2], maps.row},
                            {size.channels, strides[1], maps.channel}};
  Axis axes[3];
  int count = 0;
  for (const Axis& axis : all_axes) {
    if (axis.extent != 1) axes[count++] = axis;
  }
  sort_axes(axes, count);
  Sample sample;
  for (int i = 0; i < 3; ++i) sample.in_run[i] = sample.between[i] = {1, 0, 0};
  sample.length = sample.runs = 1;
  int taken = 0, last = -1;
  while (taken < count && axes[taken].tensor == sample.length) {
    const Axis& axis = axes[taken++];
    sample.length *= axis.extent;
    Axis* before = last < 0 ? nullptr : &sample.in_run[last];
    if (before != nullptr && axis.maps == before->maps * before->extent) {
      before->extent *= axis.extent;  // side by side in the maps too
    } else {
      sample.in_run[++last] = axis;
    }
  }
  for (int i = taken; i < count; ++i) {
    sample.between[i - taken] = axes[i];
    sample.runs *= axes[i].extent;
  }
  return sample;
}

// A number of a run, by its index along each axis and its offset in the maps.
struct Place {
  int64_t index[3], offset;
};

EQ_INLINE Place place_of(const Axis (&axes)[3], int64_t number) {
  Place place = {{0, 0, 0}, 0};
  for (int i = 0; i < 3; ++i) {
    place.index[i] = number % axes[i].extent;
    place.offset += place.index[i] * axes[i].maps;
    number /= axes[i].extent;
  }
  return place;
}

EQ_INLINE void carry(const Axis (&axes)[3], Place& place) {
  for (int i = 0; i < 2 && place.index[i] == axes[i].extent; ++i) {
    place.index[i] = 0;
    ++place.index[i + 1];
    place.offset += axes[i + 1].maps - axes[i].extent * axes[i].maps;
  }
}

// Pointers to the lines of 16 numbers from `place` on, which moves behind them.
EQ_INLINE void take16(float* maps, const Axis (&axes)[3], Place& place, float* (&lines)[kLanes]) {
  if (place.index[0] + kLanes <= axes[0].extent) {
    EQ_UNROLL for (int i = 0; i < kLanes; ++i) lines[i] = maps + place.offset + i * axes[0].maps;
    place.index[0] += kLanes;
    place.offset += kLanes * axes[0].maps;
    carry(axes, place);
    return;
  }
  for (int i = 0; i < kLanes; ++i) {
    lines[i] = maps + place.offset;
    ++place.index[0];
    place.offset += axes[0].maps;
    carry(axes, place);
  }
}

// A piece of one run for one block: 16 samples at a distance of `stride`, `live` of which exist.
struct Piece {
  int64_t begin, end;
  int64_t stride;
  int live;
};

template <bool ToMaps, bool Full, typename Tensor>
void convert_dense(Tensor* x, float* maps, const Axis (&axes)[3], const Piece& piece) {
  float nobody[kLanes] = {};  // read and written for samples that do not exist
  float* lines[kLanes];
  Place place = place_of(axes, piece.begin);
  for (int64_t i = piece.begin; i < piece.end; i += kLanes) {
    if (i + kLanes > piece.end) {  // the last 16 once more, some of them for the first time
      i = piece.end - kLanes;
      place = place_of(axes, i);
    }
    take16(maps, axes, place, lines);
    auto line = [&](int k) { return lines[k]; };
    auto sample = [&](int k) -> Tensor* {
      return Full || k < piece.live ? x + k * piece.stride + i : nobody;
    };
    if constexpr (ToMaps) {
      transpose(sample, line);
    } else {
      transpose(line, sample);
    }
  }
}

template <bool ToMaps, typename Tensor>
void convert_singly(Tensor* x, float* maps, const Axis (&axes)[3], const Piece& piece) {
  Place place = place_of(axes, piece.begin);
  for (int64_t i = piece.begin; i < piece.end; ++i) {
    float* line = maps + place.offset;
    if constexpr (ToMaps) store(line, zero());
    for (int lane = 0; lane < piece.live; ++lane) {
      if constexpr (ToMaps) {
        line[lane] = x[lane * piece.stride + i];
      } else {
        x[lane * piece.stride + i] = line[lane];
      }
    }
    ++place.index[0];
    place.offset += axes[0].maps;
    carry(axes, place);
  }
}

template <bool ToMaps, typename Tensor>
void convert(Tensor* x, const int64_t* strides, const EqMaps& maps, const EqSize& size,
             int threads) {
  const Sample sample = sample_of(strides, maps, size);
  const int64_t blocks = blocks_of(size), share = 1024;
  const int64_t pieces = sample.length < 2 * share ? 1 : sample.length / share;
  const int64_t others = sample.runs * pieces;
  if (sample.length * sample.runs == 0) return;
  for_units(blocks * others, sample.length / pieces, threads, [&](int64_t unit) {
    const bool inside = has_blocks_inside(maps);
    const int64_t block = inside ? unit % blocks : unit / others;
    const int64_t other = inside ? unit / blocks : unit % others;
    const int64_t left = size.samples - block * kLanes, begin = other % pieces * share;
    const Piece piece = {begin, other % pieces == pieces - 1 ? sample.length : begin + share,
                         strides[0], left < kLanes ? static_cast<int>(left) : kLanes};
    Tensor* from = x + block * kLanes * strides[0];
    float* to = maps.data + block * maps.block;
    int64_t run = other / pieces;
    for (const Axis& axis : sample.between) {
      from += run % axis.extent * axis.tensor;
      to += run % axis.extent * axis.maps;
      run /= axis.extent;
    }
    if (piece.end - piece.begin < kLanes) {
      convert_singly<ToMaps>(from, to, sample.in_run, piece);
    } else if (piece.live == kLanes) {
      convert_dense<ToMaps, true>(from, to, sample.in_run, piece);
    } else {
      convert_dense<ToMaps, false>(from, to, sample.in_run, piece);
    }
  });
}

void to_maps(const float* x, const int64_t* strides, const EqMaps* out, const EqSize* size,
             int threads) {
  convert<true>(x, strides, *out, *size, threads);
}

void from_maps(const EqMaps* maps, float* x, const int64_t* strides, const EqSize* size,
               int threads) {
  convert<false>(x, strides, *maps, *size, threads);
}

}  // namespace
