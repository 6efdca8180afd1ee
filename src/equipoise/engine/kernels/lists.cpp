// Making the lists of kernels.h from the positions of the active weights.
//
// Linear in the number of entries (a counting sort), so that a topology that is rewired at every
// step costs little.
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

// For every row of the kernel its tap, taps in the order of the rows that they read. Rows that read
// nothing come last.
std::vector<int64_t> order_taps(const EqGeometry& g, const EqListRequest& q, int32_t* tap_rows) {
  std::vector<int64_t> tap_of(static_cast<size_t>(g.kernel[0]), 0);
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
    tap_of[static_cast<size_t>(reading[t].second)] = static_cast<int64_t>(t);
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
  // Positions ascend, so the output channel is found by counting on.
  uint64_t o = 0, first_of_next = inputs * taps;
  for (int64_t k = 0; k < count; ++k) {
    const uint64_t position = static_cast<uint64_t>(positions[k]);
    if (position >= first_of_next) {
      o = position / (inputs * taps);
      first_of_next = (o + 1) * inputs * taps;
    }
    const uint32_t within = static_cast<uint32_t>(position - (first_of_next - inputs * taps));
    const uint32_t input = within / static_cast<uint32_t>(taps);
    const uint32_t i = static_cast<uint32_t>(static_cast<int64_t>(o) / outputs_of_group *
                                             g.in_channels) + input;
    const uint32_t tap = within - input * static_cast<uint32_t>(taps);
    const uint32_t out = static_cast<uint32_t>(o);
    weights[k] = q.transposed ? Weight{i, out, tap} : Weight{out, i, tap};
  }
  return weights;
}

struct Entry {
  int32_t offset, source, lane;
};

// Merges the entries of each bucket that read the same place; returns how many are left.
int64_t merge_groups(const std::vector<int64_t>& fill, std::vector<Entry>& entries, int64_t group,
                     int32_t* starts, int32_t* offsets, int32_t* sources) {
  int64_t made = 0;
  for (size_t b = 0; b + 1 < fill.size(); ++b) {
    starts[b] = static_cast<int32_t>(made);
    std::stable_sort(entries.begin() + fill[b], entries.begin() + fill[b + 1],
                     [](const Entry& x, const Entry& y) { return x.offset < y.offset; });
    for (int64_t k = fill[b]; k < fill[b + 1]; ++k) {
      if (k == fill[b] || entries[k].offset != entries[k - 1].offset) {
        offsets[made] = entries[k].offset;
        for (int64_t lane = 0; lane < group; ++lane) sources[made * group + lane] = -1;
        ++made;
      }
      sources[(made - 1) * group + entries[k].lane] = entries[k].source;
    }
  }
  starts[fill.size() - 1] = static_cast<int32_t>(made);
  return made;
}

// Shares out the entries of each pair of rows: what both read, then what only the first or the
// second one reads. Returns how many entries there are.
int64_t merge_pairs(const std::vector<int64_t>& fill, std::vector<Entry>& entries, int64_t taps,
                    int32_t* starts, int32_t* slots, int32_t* offsets, int32_t* sources) {
  int64_t made = 0, weights = 0;
  const int64_t buckets = static_cast<int64_t>(fill.size()) - 1;
  // Whether an entry of the first row and the next one, of the second row, are one and the same.
  auto meet = [&](int64_t k) {
    return entries[k].offset == entries[k + 1].offset && entries[k].lane < entries[k + 1].lane;
  };
  for (int64_t b = 0; b < buckets; ++b) {
    std::stable_sort(entries.begin() + fill[b], entries.begin() + fill[b + 1],
                     [](const Entry& x, const Entry& y) {
                       return x.offset != y.offset ? x.offset < y.offset : x.lane < y.lane;
                     });
  }
  for (int64_t pair = 0; pair < buckets / taps; ++pair) {
    for (int64_t part = 0; part < 3; ++part) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t bucket = pair * taps + tap, at = (pair * 3 + part) * taps + tap;
        const int64_t first = fill[bucket], end = fill[bucket + 1];
        starts[at] = static_cast<int32_t>(made);
        slots[at] = static_cast<int32_t>(weights);
        for (int64_t k = first; k < end; ++k) {
          const bool both = (k + 1 < end && meet(k)) || (k > first && meet(k - 1));
          if (both != (part == 0) || (!both && entries[k].lane != part - 1)) continue;
          sources[weights++] = entries[k].source;
          if (!both || entries[k].lane == 0) offsets[made++] = entries[k].offset;
        }
      }
    }
  }
  starts[buckets * 3] = static_cast<int32_t>(made);
  slots[buckets * 3] = static_cast<int32_t>(weights);
  return made;
}

}  // namespace

// Makes a list and returns its number of entries, or -1 if memory ran out. `starts` has room for
// blocks * rows * taps + 1 numbers, for pairs of rows for three times as many and one; so has `slots`,
// which is written for pairs only. `tap_rows` has room for taps, `offsets` for as many as there are
// weights times the largest number of positions that one reaches, and `sources` for as many again,
// times four for groups of four.
extern "C" int64_t eq_make_list(const EqGeometry* geometry, const EqListRequest* request,
                                const int64_t* positions, int64_t count, int64_t rows,
                                int64_t blocks, int32_t* starts, int32_t* slots,
                                int32_t* tap_rows, int32_t* offsets, int32_t* sources) try {
  const EqGeometry& g = *geometry;
  const EqListRequest& q = *request;
  const Reaches reaches(g, q);
  const std::vector<int64_t> tap_of = order_taps(g, q, tap_rows);
  const std::vector<Weight>& weights = decoded(g, q, positions, count);
  const int64_t spread = q.expanded ? q.written[0] * q.written[1] : 1;
  // body(bucket, row, offset, k) for every entry; a bucket is a block, a group of rows and a tap.
  auto for_entries = [&](auto&& body) {
    for (int64_t k = 0; k < count; ++k) {
      const Weight& w = weights[k];
      const int64_t bucket = w.channel / static_cast<uint32_t>(q.block) * rows;
      const int64_t base = w.channel * q.channel, first_row = w.row * spread;
      const int64_t tap = tap_of[w.tap / static_cast<uint32_t>(g.kernel[1])];
      for (int64_t r = reaches.starts[w.tap]; r < reaches.starts[w.tap + 1]; ++r) {
        const int64_t row = first_row + reaches.all[r].row;
        const int64_t grouped = q.group == 1 ? row : row / q.group;
        body((bucket + grouped) * q.taps + tap, row, base + reaches.all[r].offset, k);
      }
    }
  };
  std::vector<int64_t> fill(static_cast<size_t>(blocks * rows * q.taps) + 1, 0);
  for_entries([&](int64_t bucket, int64_t, int64_t, int64_t) { ++fill[bucket + 1]; });
  for (size_t b = 1; b < fill.size(); ++b) fill[b] += fill[b - 1];
  std::vector<int64_t> next(fill);
  if (q.group == 1) {
    for_entries([&](int64_t bucket, int64_t, int64_t offset, int64_t k) {
      const int64_t at = next[bucket]++;
      offsets[at] = static_cast<int32_t>(offset);
      sources[at] = static_cast<int32_t>(k);
    });
    for (size_t b = 0; b < fill.size(); ++b) starts[b] = static_cast<int32_t>(fill[b]);
    return fill.back();
  }
  std::vector<Entry> entries(static_cast<size_t>(fill.back()));
  for_entries([&](int64_t bucket, int64_t row, int64_t offset, int64_t k) {
    entries[next[bucket]++] = {static_cast<int32_t>(offset), static_cast<int32_t>(k),
                               static_cast<int32_t>(row % q.group)};
  });
  if (q.group == 2) return merge_pairs(fill, entries, q.taps, starts, slots, offsets, sources);
  return merge_groups(fill, entries, q.group, starts, offsets, sources);
} catch (const std::bad_alloc&) {
  return -1;
}
