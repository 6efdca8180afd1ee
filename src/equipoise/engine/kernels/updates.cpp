// Following a rewiring: a list of other weights, made from one that has most of them.
//
// Every weight that stays has a new place among the values, so all entries are looked at; but they
// are copied in their order, and only what is added is sorted. What comes out is, number by number,
// the list that eq_make_list makes.
#include "entries.h"
#include "kernels.h"

namespace {

// The new entries of a list by bucket, as `Sorter` shares them out.
struct Added {
  std::vector<int64_t> fill;
  std::vector<Entry> entries;
  const Entry* first(int64_t bucket) const { return entries.data() + fill[bucket]; }
  const Entry* end(int64_t bucket) const { return entries.data() + fill[bucket + 1]; }
};

// A list that is being written.
struct Target {
  int32_t *starts, *slots, *offsets, *sources;
  int64_t entries = 0, weights = 0;
};

// The place of an old weight among the new ones, or -1.
int32_t moved(const int32_t* places, int32_t source) { return source < 0 ? -1 : places[source]; }

// Rows on their own: the entries of a bucket are in the order of the weights.
void update_rows(const EqList& old, const int32_t* places, const Added& added, Target& to) {
  int64_t made = 0;
  const int64_t buckets = old.blocks * old.rows * old.taps;
  // Written in any case, counted if it stays: whether it does is nothing that a processor foresees.
  auto keep = [&](int64_t k, int32_t place) {
    to.offsets[made] = old.offsets[k];
    to.sources[made] = place;
    made += place >= 0;
  };
  for (int64_t b = 0; b < buckets; ++b) {
    to.starts[b] = static_cast<int32_t>(made);
    int64_t k = old.starts[b];
    const int64_t end = old.starts[b + 1];
    for (const Entry *entry = added.first(b), *last = added.end(b); entry != last; ++entry) {
      for (; k < end; ++k) {
        const int32_t place = places[old.sources[k]];
        if (place > entry->source) break;
        keep(k, place);
      }
      to.offsets[made] = entry->offset;
      to.sources[made++] = entry->source;
    }
    for (; k < end; ++k) keep(k, places[old.sources[k]]);
  }
  to.starts[buckets] = static_cast<int32_t>(made);
  to.entries = to.weights = made;
}

// Rows that share their entries, in the order of what they read; `group` weights an entry.
void update_groups(const EqList& old, const int32_t* places, const Added& added, Target& to) {
  const int64_t group = old.group, buckets = old.blocks * old.rows * old.taps;
  int64_t made = 0;
  for (int64_t b = 0; b < buckets; ++b) {
    to.starts[b] = static_cast<int32_t>(made);
    int64_t k = old.starts[b];
    const int64_t end = old.starts[b + 1];
    const Entry *entry = added.first(b), *last = added.end(b);
    while (k < end || entry != last) {
      const bool is_old = k < end && (entry == last || old.offsets[k] <= entry->offset);
      const int32_t offset = is_old ? old.offsets[k] : entry->offset;
      int32_t* lanes = to.sources + made * group;
      bool any = false;
      for (int64_t lane = 0; lane < group; ++lane) {
        lanes[lane] = is_old ? moved(places, old.sources[k * group + lane]) : -1;
        any |= lanes[lane] >= 0;
      }
      k += is_old;
      for (; entry != last && entry->offset == offset; ++entry, any = true) {
        lanes[entry->lane] = entry->source;
      }
      to.offsets[made] = offset;
      made += any;
    }
  }
  to.starts[buckets] = static_cast<int32_t>(made);
  to.entries = made;
  to.weights = made * group;
}

struct Read {
  int32_t offset, source;
};

// What one row of a pair reads by one tap, in the order of what is read.
void read_by(const EqList& old, const int32_t* places, const Added& added, int64_t pair,
             int64_t tap, int lane, std::vector<Read>& found) {
  const int64_t at = pair * 3 * old.taps + tap, alone = at + (1 + lane) * old.taps;
  int64_t both = old.starts[at], single = old.starts[alone];
  const int64_t both_end = old.starts[at + 1], single_end = old.starts[alone + 1];
  const int32_t* shared = old.sources + old.slots[at] + lane;
  const int32_t* own = old.sources + old.slots[alone];
  const Entry *entry = added.first(pair * old.taps + tap), *last = added.end(pair * old.taps + tap);
  constexpr int64_t kNone = INT64_MAX;
  for (;;) {
    while (entry != last && entry->lane != lane) ++entry;
    const int64_t a = both < both_end ? old.offsets[both] : kNone;
    const int64_t b = single < single_end ? old.offsets[single] : kNone;
    const int64_t c = entry != last ? entry->offset : kNone;
    const int64_t offset = std::min({a, b, c});
    if (offset == kNone) return;
    // A weight that goes and another that comes to its place may meet here.
    int32_t source = -1;
    if (a == offset) source = places[*shared], shared += 2, ++both;
    if (b == offset) source = places[*own++], ++single;
    if (c == offset) source = entry++->source;
    if (source >= 0) found.push_back({static_cast<int32_t>(offset), source});
  }
}

// Pairs of rows, which share what both read.
void update_pairs(const EqList& old, const int32_t* places, const Added& added, Target& to) {
  const int64_t pairs = old.blocks * old.rows, taps = old.taps;
  std::vector<Read> reads[2];
  std::vector<size_t> ends[2] = {std::vector<size_t>(taps + 1, 0), std::vector<size_t>(taps + 1, 0)};
  int64_t made = 0, weights = 0;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    for (int lane = 0; lane < 2; ++lane) {
      reads[lane].clear();
      for (int64_t tap = 0; tap < taps; ++tap) {
        read_by(old, places, added, pair, tap, lane, reads[lane]);
        ends[lane][tap + 1] = reads[lane].size();
      }
    }
    for (int part = 0; part < 3; ++part) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t at = (pair * 3 + part) * taps + tap;
        to.starts[at] = static_cast<int32_t>(made);
        to.slots[at] = static_cast<int32_t>(weights);
        size_t x = ends[0][tap], y = ends[1][tap];
        const size_t x_end = ends[0][tap + 1], y_end = ends[1][tap + 1];
        while (x < x_end || y < y_end) {
          const int64_t a = x < x_end ? reads[0][x].offset : INT64_MAX;
          const int64_t b = y < y_end ? reads[1][y].offset : INT64_MAX;
          const int found = a == b ? 0 : a < b ? 1 : 2;
          if (found == part) {
            to.offsets[made++] = static_cast<int32_t>(std::min(a, b));
            if (a <= b) to.sources[weights++] = reads[0][x].source;
            if (b <= a) to.sources[weights++] = reads[1][y].source;
          }
          x += a <= b;
          y += b <= a;
        }
      }
    }
  }
  to.starts[pairs * 3 * taps] = static_cast<int32_t>(made);
  to.slots[pairs * 3 * taps] = static_cast<int32_t>(weights);
  to.entries = made;
  to.weights = weights;
}

}  // namespace

// Compares two ascending lists of positions: places[k] is where number k of `before` stands in `now`,
// or -1; the positions that are new go to `added`, and where they stand to `added_places`. Returns
// how many those are; there is room for as many as `now` has.
extern "C" int64_t eq_compare(const int64_t* before, int64_t count_before, const int64_t* now,
                              int64_t count_now, int32_t* places, int64_t* added,
                              int32_t* added_places) {
  int64_t k = 0, number = 0;
  for (int64_t i = 0; i < count_now; ++i) {
    while (k < count_before && before[k] < now[i]) places[k++] = -1;
    if (k < count_before && before[k] == now[i]) {
      places[k++] = static_cast<int32_t>(i);
    } else {
      added[number] = now[i];
      added_places[number++] = static_cast<int32_t>(i);
    }
  }
  while (k < count_before) places[k++] = -1;
  return number;
}

// Makes a list from another one of the same convolution and request; returns its number of entries,
// or -1 if memory ran out. `places`, `added` and `added_places` come from eq_compare. `starts` and
// `slots` have the sizes of the old ones. `offsets` has room for the old entries and as many as there
// are added weights times the largest number of positions that one reaches; `sources` likewise for
// weights.
extern "C" int64_t eq_update_list(const EqGeometry* geometry, const EqListRequest* request,
                                  const EqList* old, const int32_t* places, const int64_t* positions,
                                  const int32_t* added_places, int64_t count, int32_t* starts,
                                  int32_t* slots, int32_t* offsets, int32_t* sources) try {
  const EqListRequest& q = *request;
  std::vector<int32_t> tap_rows(static_cast<size_t>(q.taps));
  const Sorter sorter(*geometry, q, old->rows, old->blocks, tap_rows.data());
  Added added;
  added.fill = sorter.sort(
      positions, count,
      [&](int64_t at, int64_t row, int64_t offset, int64_t k) {
        added.entries[at] = {static_cast<int32_t>(offset), added_places[k],
                             static_cast<int32_t>(row % q.group)};
      },
      [&](int64_t number) { added.entries.resize(static_cast<size_t>(number)); });
  Target to{starts, slots, offsets, sources};
  if (q.group == 1) {
    update_rows(*old, places, added, to);
    return to.entries;
  }
  for (size_t b = 0; b + 1 < added.fill.size(); ++b) {
    sort_runs(added.entries.data() + added.fill[b], added.entries.data() + added.fill[b + 1]);
  }
  if (q.group == 2) {
    update_pairs(*old, places, added, to);
  } else {
    update_groups(*old, places, added, to);
  }
  return to.entries;
} catch (const std::bad_alloc&) {
  return -1;
}
