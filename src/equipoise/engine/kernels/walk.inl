// How maps are walked, whatever their strides.
#pragma once

namespace {

// value where the lane holds a sample, zero where not, even for infinities.
EQ_INLINE Line keep_live(Line live, Line value) {
  return where_greater(live, zero(), value, zero());
}

EQ_INLINE int64_t blocks_of(const EqSize& size) { return (size.samples + kLanes - 1) / kLanes; }

// Where results go: a choice that is made once for all, so that loops need not look at it often.
EQ_INLINE void put(float* p, Line a, bool past) {
  if (past) {
    store_past(p, a);
  } else {
    store(p, a);
  }
}

EQ_INLINE bool maps_go_past(const EqMaps* maps, const EqSize& size) {
  return maps != nullptr &&
         goes_past(maps->data, blocks_of(size) * size.channels * size.rows * size.columns,
                   kPassPastBytes);
}

EQ_INLINE bool has_blocks_inside(const EqMaps& maps) { return maps.block < maps.channel; }

EQ_INLINE float* plane(const EqMaps* maps, int64_t block, int64_t channel) {
  return maps ? maps->data + block * maps->block + channel * maps->channel : nullptr;
}

// The lines of one channel in K maps at once, as runs of lines at a fixed distance: blocks, rows
// and columns in the order of the memory, joined where all maps allow it. Outermost first.
template <int K>
struct Walk {
  int64_t count[3];
  int64_t step[K][3];
};

template <int K>
struct Operands {
  const EqMaps* maps[K];  // null for one that is not there

  const EqMaps& some() const {
    for (int k = 0; k < K; ++k) {
      if (maps[k] != nullptr) return *maps[k];
    }
    return *maps[0];
  }
};

EQ_INLINE int64_t stride_of(const EqMaps* maps, int axis) {
  if (maps == nullptr) return 0;
  return axis == 0 ? maps->block : axis == 1 ? maps->row : maps->column;
}

template <int K>
Walk<K> walk_over(const Operands<K>& of, int64_t blocks, const EqSize& size) {
  const int64_t extents[3] = {blocks, size.rows, size.columns};
  const bool inside = has_blocks_inside(of.some());
  const int order[3] = {inside ? 0 : 2, inside ? 2 : 1, inside ? 1 : 0};  // innermost first
  Walk<K> walk;
  for (int level = 0; level < 3; ++level) {
    walk.count[level] = 1;
    for (int k = 0; k < K; ++k) walk.step[k][level] = of.maps[k] ? kLanes : 0;
  }
  int level = 3;
  for (int axis : order) {
    if (extents[axis] == 1) continue;
    bool joins = level < 3;
    for (int k = 0; joins && k < K; ++k) {
      joins = stride_of(of.maps[k], axis) == walk.step[k][level] * walk.count[level];
    }
    if (joins) {
      walk.count[level] *= extents[axis];
      continue;
    }
    --level;
    walk.count[level] = extents[axis];
    for (int k = 0; k < K; ++k) walk.step[k][level] = stride_of(of.maps[k], axis);
  }
  return walk;
}

template <int K>
EQ_INLINE int64_t lines_of(const Walk<K>& walk) {
  return walk.count[0] * walk.count[1] * walk.count[2];
}

// body(pointers, count) for every run; line i of map k is at pointers[k] + i * step[k][2].
template <int K, typename Body>
EQ_INLINE void for_runs(const Walk<K>& walk, float* const (&base)[K], Body&& body) {
  for (int64_t i = 0; i < walk.count[0]; ++i) {
    for (int64_t j = 0; j < walk.count[1]; ++j) {
      float* at[K];
      for (int k = 0; k < K; ++k) at[k] = base[k] + i * walk.step[k][0] + j * walk.step[k][1];
      body(at, walk.count[2]);
    }
  }
}

// Walks over the blocks without dead lanes, and over any single block.
template <int K>
struct Cover {
  Walk<K> full, one;
  int64_t blocks, full_blocks;
  int live;  // lanes of the last block that hold a sample
};

template <int K>
Cover<K> cover_of(const Operands<K>& of, const EqSize& size) {
  const int64_t blocks = blocks_of(size), full_blocks = size.samples / kLanes;
  return {walk_over<K>(of, full_blocks, size), walk_over<K>(of, 1, size), blocks, full_blocks,
          static_cast<int>(size.samples - (blocks - 1) * kLanes)};
}

// body(unit) for every unit in [0, units), each of about `lines` lines; small ones share a task.
template <typename Body>
void for_units(int64_t units, int64_t lines, int threads, Body&& body) {
  const int64_t least = 256;
  const int64_t grain = lines >= least ? 1 : (least + lines - 1) / (lines > 0 ? lines : 1);
  parallel_for((units + grain - 1) / grain, threads, [&](int64_t task) {
    const int64_t end = (task + 1) * grain < units ? (task + 1) * grain : units;
    for (int64_t unit = task * grain; unit < end; ++unit) body(unit);
  });
}

// body(walk, base, channel, live) for every part of K maps, in parallel. Each part lies in one
// channel and covers either full blocks (live = 16), or the last block where it has dead lanes.
template <int K, typename Body>
void for_parts(const Operands<K>& of, const EqSize& size, int threads, Body&& body) {
  const Cover<K> cover = cover_of<K>(of, size);
  const bool inside = has_blocks_inside(of.some());
  const int64_t lines = (inside ? cover.blocks : 1) * lines_of(cover.one);
  auto part = [&](const Walk<K>& walk, int64_t block, int64_t channel, int live) {
    float* base[K];
    for (int k = 0; k < K; ++k) base[k] = plane(of.maps[k], block, channel);
    body(walk, base, channel, live);
  };
  for_units((inside ? 1 : cover.blocks) * size.channels, lines, threads, [&](int64_t unit) {
    const int64_t channel = unit % size.channels, block = unit / size.channels;
    if (!inside) {
      part(cover.one, block, channel, block < cover.full_blocks ? kLanes : cover.live);
      return;
    }
    if (cover.full_blocks > 0) part(cover.full, 0, channel, kLanes);
    if (cover.full_blocks < cover.blocks) {
      part(cover.one, cover.full_blocks, channel, cover.live);
    }
  });
}

}  // namespace
