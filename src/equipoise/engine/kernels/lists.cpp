// Making the lists of kernels.h from the positions of the active weights.
//
// Linear in the number of entries (a counting sort).
#include "entries.h"

namespace {

// Merges the entries of each bucket that read the same place; returns how many are left.
int64_t merge_groups(const std::vector<int64_t>& fill, std::vector<Entry>& entries, int64_t group,
                     int32_t* starts, int32_t* offsets, int32_t* sources) {
  int64_t made = 0;
  for (size_t b = 0; b + 1 < fill.size(); ++b) {
    starts[b] = static_cast<int32_t>(made);
    sort_runs(entries.data() + fill[b], entries.data() + fill[b + 1]);
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
    sort_runs(entries.data() + fill[b], entries.data() + fill[b + 1]);
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
// which may be null otherwise. `tap_rows` has room for taps, `offsets` for as many as there are
// weights times the largest number of positions that one reaches, and `sources` for as many again,
// times four for groups of four.
extern "C" int64_t eq_make_list(const EqGeometry* geometry, const EqListRequest* request,
                                const int64_t* positions, int64_t count, int64_t rows,
                                int64_t blocks, int32_t* starts, int32_t* slots,
                                int32_t* tap_rows, int32_t* offsets, int32_t* sources) try {
  const EqListRequest& q = *request;
  const Sorter sorter(*geometry, q, rows, blocks, tap_rows);
  if (q.group == 1) {
    const std::vector<int64_t> fill =
        sorter.sort(positions, count, [&](int64_t at, int64_t, int64_t offset, int64_t k) {
          offsets[at] = static_cast<int32_t>(offset);
          sources[at] = static_cast<int32_t>(k);
        });
    for (size_t b = 0; b < fill.size(); ++b) starts[b] = static_cast<int32_t>(fill[b]);
    return fill.back();
  }
  std::vector<Entry> entries;
  const std::vector<int64_t> fill = sorter.sort(
      positions, count,
      [&](int64_t at, int64_t row, int64_t offset, int64_t k) {
        entries[at] = {static_cast<int32_t>(offset), static_cast<int32_t>(k),
                       static_cast<int32_t>(row % q.group)};
      },
      [&](int64_t number) { entries.resize(static_cast<size_t>(number)); });
  if (q.group == 2) return merge_pairs(fill, entries, q.taps, starts, slots, offsets, sources);
  return merge_groups(fill, entries, q.group, starts, offsets, sources);
} catch (const std::bad_alloc&) {
  return -1;
}
