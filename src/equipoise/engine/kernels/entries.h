// The entries of a list: what the active weights of a convolution read and write. For lists.cpp, which
// makes lists, and updates.cpp, which follows a rewiring.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

// A convolution: weight (out_channels, in_channels of one group, kernel rows, kernel columns).
struct EqGeometry {
  int64_t out_channels, in_channels, groups;
  int64_t kernel[2], stride[2], padding[2], dilation[2];
};

// Which list of it. Forward lists have a row for each output channel and read the input;
// transposed ones have a row for each input channel and read the output's gradient, one list for
// each phase of the stride (the input positions that are phase modulo stride).
// Expanded lists have a row for each channel and position, and leave out what lies outside.
struct EqListRequest {
  int64_t transposed, expanded;
  int64_t phase[2];
  int64_t block;  // channels that are read by one block of entries
  int64_t group;  // rows that share entries
  int64_t taps;   // rows of the maps that one position reads: those of the kernel, or 1 if expanded
  int64_t channel, row, column;  // strides of what is read
  int64_t read[2], written[2];   // sizes of the maps, used where expanded
};

namespace {

// What a weight at one kernel position contributes to, relative to its channels: one entry in a
// plain list, or one for each position of the map in an expanded one.
struct Reach {
  int64_t row, offset;
};

int64_t remainder_of(int64_t a, int64_t b) { return ((a % b) + b) % b; }

// Pairs (written, read) of positions along one axis that a kernel position connects.
std::vector<std::pair<int64_t, int64_t>> connected(const EqGeometry& g, const EqListRequest& q,
                                                   int axis, int64_t k) {
  const int64_t tap = k * g.dilation[axis] - g.padding[axis], stride = g.stride[axis];
  std::vector<std::pair<int64_t, int64_t>> pairs;
  if (!q.expanded) {
    if (!q.transposed) {
      pairs.push_back({0, tap});
    } else if (remainder_of(q.phase[axis] - tap, stride) == 0) {
      pairs.push_back({0, (q.phase[axis] - tap) / stride});
    }
    return pairs;
  }
  for (int64_t written = 0; written < q.written[axis]; ++written) {
    int64_t read = written * stride + tap;
    if (q.transposed) {
      if (remainder_of(written - tap, stride) != 0) continue;
      read = (written - tap) / stride;
    }
    if (read >= 0 && read < q.read[axis]) pairs.push_back({written, read});
  }
  return pairs;
}

// For every position of the kernel its tap: the rows of the kernel in the order of the rows that they
// read. Rows that read nothing come last.
std::vector<int64_t> order_taps(const EqGeometry& g, const EqListRequest& q, int32_t* tap_rows) {
  std::vector<int64_t> tap_of(static_cast<size_t>(g.kernel[0] * g.kernel[1]), 0);
  if (q.expanded) {
    tap_rows[0] = 0;
    return tap_of;
  }
  std::vector<std::pair<int64_t, int64_t>> reading, idle;
  for (int64_t kh = 0; kh < g.kernel[0]; ++kh) {
    const auto rows = connected(g, q, 0, kh);
    if (rows.empty()) {
      idle.push_back({0, kh});
    } else {
      reading.push_back({rows[0].second, kh});
    }
  }
  std::sort(reading.begin(), reading.end());
  for (auto& [row, kh] : idle) row = reading.empty() ? 0 : reading.back().first;
  reading.insert(reading.end(), idle.begin(), idle.end());
  for (size_t t = 0; t < reading.size(); ++t) {
    tap_rows[t] = static_cast<int32_t>(reading[t].first);
    auto row = tap_of.begin() + reading[t].second * g.kernel[1];
    std::fill(row, row + g.kernel[1], static_cast<int64_t>(t));
  }
  return tap_of;
}

// The reach of every kernel position, one after another.
struct Reaches {
  std::vector<Reach> all;
  std::vector<int64_t> starts;

  Reaches(const EqGeometry& g, const EqListRequest& q) {
    starts.push_back(0);
    for (int64_t kh = 0; kh < g.kernel[0]; ++kh) {
      const auto rows = connected(g, q, 0, kh);
      for (int64_t kw = 0; kw < g.kernel[1]; ++kw) {
        for (const auto& [to_row, from_row] : rows) {
          for (const auto& [to_column, from_column] : connected(g, q, 1, kw)) {
            all.push_back({to_row * q.written[1] + to_column,
                           from_row * q.row + from_column * q.column});
          }
        }
        starts.push_back(static_cast<int64_t>(all.size()));
      }
    }
  }
};

// One active weight: the channels that it connects, and its kernel position.
struct Weight {
  uint32_t row, channel, tap;
};

// The memory is kept from call to call.
const std::vector<Weight>& decoded(const EqGeometry& g, const EqListRequest& q,
                                   const int64_t* positions, int64_t count) {
  const uint64_t taps = static_cast<uint64_t>(g.kernel[0] * g.kernel[1]);
  const uint64_t inputs = static_cast<uint64_t>(g.in_channels);
  const int64_t outputs_of_group = g.out_channels / g.groups;
  static thread_local std::vector<Weight> weights;
  weights.resize(static_cast<size_t>(count));
  // Division by a constant as a product, where it is exact: a processor divides slowly.
  const bool exact = inputs * taps * taps < (1ull << 32);
  const uint64_t inverse = (1ull << 32) / taps + 1;
  // Positions ascend, so the output channel is found by counting on.
  uint64_t o = 0, first_of_next = inputs * taps;
  uint32_t first_input = 0;
  for (int64_t k = 0; k < count; ++k) {
    const uint64_t position = static_cast<uint64_t>(positions[k]);
    if (position >= first_of_next) {
      o = position / (inputs * taps);
      first_of_next = (o + 1) * inputs * taps;
      first_input = static_cast<uint32_t>(static_cast<int64_t>(o) / outputs_of_group *
                                          g.in_channels);
    }
    const uint32_t within = static_cast<uint32_t>(position - (first_of_next - inputs * taps));
    const uint32_t input = exact ? static_cast<uint32_t>(within * inverse >> 32)
                                 : within / static_cast<uint32_t>(taps);
    const uint32_t i = first_input + input;
    const uint32_t tap = within - input * static_cast<uint32_t>(taps);
    const uint32_t out = static_cast<uint32_t>(o);
    weights[k] = q.transposed ? Weight{i, out, tap} : Weight{out, i, tap};
  }
  return weights;
}

struct Entry {
  int32_t offset, source, lane;
};

bool reads_before(const Entry& x, const Entry& y) {
  return x.offset != y.offset ? x.offset < y.offset : x.lane < y.lane;
}

// Sorts entries that come in few ascending runs, as those of each row do.
void sort_runs(Entry* first, Entry* end) {
  Entry* sorted = std::is_sorted_until(first, end, reads_before);
  while (sorted != end) {
    Entry* next = std::is_sorted_until(sorted, end, reads_before);
    if (next - sorted < 4) {  // no runs to speak of
      std::sort(first, end, reads_before);
      return;
    }
    std::inplace_merge(first, sorted, next, reads_before);
    sorted = next;
  }
}

// Shares entries out to the buckets of a list: one for a block, a group of rows and a tap.
class Sorter {
 public:
  Sorter(const EqGeometry& g, const EqListRequest& q, int64_t rows, int64_t blocks,
         int32_t* tap_rows)
      : g_(g), q_(q), reaches_(g, q), tap_of_(order_taps(g, q, tap_rows)) {
    spread_ = q.expanded ? q.written[0] * q.written[1] : 1;
    buckets_ = blocks * rows * q.taps;
    const int64_t channels = q.transposed ? g.out_channels : g.in_channels * g.groups;
    block_of_.resize(static_cast<size_t>(channels));
    for (int64_t c = 0; c < channels; ++c) block_of_[c] = c / q.block * rows;
    group_bits_ = q.group == 4 ? 2 : q.group == 2 ? 1 : 0;
  }

  // Calls body(at, row, offset, k) for every entry of the weights at `positions`; those of bucket b
  // have the places from fill[b] to the next, in the order of the weights.
  template <typename Body>
  std::vector<int64_t> sort(const int64_t* positions, int64_t count, Body&& body) const {
    return sort(positions, count, body, [](int64_t) {});
  }
  // The same; `reserve` is told the number of entries before the first.
  template <typename Body, typename Reserve>
  std::vector<int64_t> sort(const int64_t* positions, int64_t count, Body&& body,
                            Reserve&& reserve) const {
    const std::vector<Weight>& weights = decoded(g_, q_, positions, count);
    std::vector<int64_t> fill(static_cast<size_t>(buckets_) + 1, 0);
    each(weights, count, [&](int64_t bucket, int64_t, int64_t, int64_t) { ++fill[bucket + 1]; });
    for (size_t b = 1; b < fill.size(); ++b) fill[b] += fill[b - 1];
    reserve(fill.back());
    std::vector<int64_t> next(fill);
    each(weights, count, [&](int64_t bucket, int64_t row, int64_t offset, int64_t k) {
      body(next[bucket]++, row, offset, k);
    });
    return fill;
  }

 private:
  template <typename Body>
  void each(const std::vector<Weight>& weights, int64_t count, Body&& body) const {
    for (int64_t k = 0; k < count; ++k) {
      const Weight& w = weights[k];
      const int64_t bucket = block_of_[w.channel];
      const int64_t base = w.channel * q_.channel, first_row = w.row * spread_;
      const int64_t tap = tap_of_[w.tap];
      for (int64_t r = reaches_.starts[w.tap]; r < reaches_.starts[w.tap + 1]; ++r) {
        const int64_t row = first_row + reaches_.all[r].row;
        body((bucket + (row >> group_bits_)) * q_.taps + tap, row, base + reaches_.all[r].offset,
             k);
      }
    }
  }

  const EqGeometry& g_;
  const EqListRequest& q_;
  Reaches reaches_;
  std::vector<int64_t> tap_of_, block_of_;
  int64_t spread_, buckets_;
  int group_bits_;
};

}  // namespace
