// Making the lists of kernels.h from the positions of the active weights.
//
// Linear in the number of entries (a counting sort), so that a topology that is rewired at every
// step costs little.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
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
  int64_t channel, row, column;  // strides of what is read
  int64_t read[2], written[2];   // sizes of the maps, used where expanded
};

namespace {

struct Entry {
  int32_t offset, source;
};

// What one weight contributes to: calls emit(row, read channel, offset) for each entry.
template <typename Emit>
void entries_of(const EqGeometry& g, const EqListRequest& q, int64_t position, Emit&& emit) {
  const int64_t kw = position % g.kernel[1], rest = position / g.kernel[1];
  const int64_t kh = rest % g.kernel[0], pair = rest / g.kernel[0];
  const int64_t within = pair % g.in_channels, o = pair / g.in_channels;
  const int64_t i = o / (g.out_channels / g.groups) * g.in_channels + within;
  const int64_t row = q.transposed ? i : o, channel = q.transposed ? o : i;
  const int64_t tap[2] = {kh * g.dilation[0] - g.padding[0], kw * g.dilation[1] - g.padding[1]};
  const int64_t base = channel * q.channel;
  if (!q.expanded) {
    int64_t shift[2];
    for (int d = 0; d < 2; ++d) {
      if (!q.transposed) {
        shift[d] = tap[d];
        continue;
      }
      const int64_t distance = q.phase[d] - tap[d];
      if (((distance % g.stride[d]) + g.stride[d]) % g.stride[d] != 0) return;
      shift[d] = distance / g.stride[d];
    }
    emit(row, channel, base + shift[0] * q.row + shift[1] * q.column);
    return;
  }
  for (int64_t h = 0; h < q.written[0]; ++h) {
    int64_t r;
    if (!q.transposed) {
      r = h * g.stride[0] + tap[0];
    } else {
      if ((h - tap[0]) % g.stride[0] != 0) continue;
      r = (h - tap[0]) / g.stride[0];
    }
    if (r < 0 || r >= q.read[0]) continue;
    for (int64_t w = 0; w < q.written[1]; ++w) {
      int64_t c;
      if (!q.transposed) {
        c = w * g.stride[1] + tap[1];
      } else {
        if ((w - tap[1]) % g.stride[1] != 0) continue;
        c = (w - tap[1]) / g.stride[1];
      }
      if (c < 0 || c >= q.read[1]) continue;
      emit((row * q.written[0] + h) * q.written[1] + w, channel,
           base + r * q.row + c * q.column);
    }
  }
}

}  // namespace

// Makes a list. `starts` has room for blocks * (rows + 1) numbers, the other two may be null: then
// only `starts` is made and the number of entries returned, so that the caller can make room.
// -1 if memory ran out.
extern "C" int64_t eq_make_list(const EqGeometry* geometry, const EqListRequest* request,
                                const int64_t* positions, int64_t count, int64_t rows,
                                int64_t blocks, int32_t* starts, int32_t* offsets,
                                int32_t* sources) try {
  const EqGeometry& g = *geometry;
  const EqListRequest& q = *request;
  std::vector<int64_t> fill(static_cast<size_t>(blocks * rows) + 1, 0);
  for (int64_t k = 0; k < count; ++k) {
    entries_of(g, q, positions[k], [&](int64_t row, int64_t channel, int64_t) {
      ++fill[channel / q.block * rows + row / q.group + 1];
    });
  }
  for (size_t b = 1; b < fill.size(); ++b) fill[b] += fill[b - 1];
  const int64_t single = fill.back();
  std::vector<Entry> entries(static_cast<size_t>(single));
  std::vector<int32_t> lanes(q.group > 1 ? static_cast<size_t>(single) : 0);
  {
    std::vector<int64_t> next(fill);
    for (int64_t k = 0; k < count; ++k) {
      entries_of(g, q, positions[k], [&](int64_t row, int64_t channel, int64_t offset) {
        const int64_t at = next[channel / q.block * rows + row / q.group]++;
        // The row within its group rides in the source until the entries are merged.
        entries[at] = {static_cast<int32_t>(offset), static_cast<int32_t>(k)};
        if (q.group > 1) lanes[at] = static_cast<int32_t>(row % q.group);
      });
    }
  }
  int64_t made = 0;
  std::vector<std::pair<Entry, int32_t>> bucket;
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t first = fill[b * rows + r], end = fill[b * rows + r + 1];
      starts[b * (rows + 1) + r] = static_cast<int32_t>(made);
      if (q.group == 1) {
        if (offsets != nullptr) {
          for (int64_t k = first; k < end; ++k) {
            offsets[made + k - first] = entries[k].offset;
            sources[made + k - first] = entries[k].source;
          }
        }
        made += end - first;
        continue;
      }
      bucket.clear();
      for (int64_t k = first; k < end; ++k) bucket.push_back({entries[k], lanes[k]});
      std::stable_sort(bucket.begin(), bucket.end(), [](const auto& x, const auto& y) {
        return x.first.offset < y.first.offset;
      });
      for (size_t k = 0; k < bucket.size(); ++k) {
        const bool opens = k == 0 || bucket[k].first.offset != bucket[k - 1].first.offset;
        if (opens && offsets != nullptr) {
          offsets[made] = bucket[k].first.offset;
          for (int64_t lane = 0; lane < q.group; ++lane) sources[made * q.group + lane] = -1;
        }
        if (opens) ++made;
        if (offsets != nullptr) {
          sources[(made - 1) * q.group + bucket[k].second] = bucket[k].first.source;
        }
      }
    }
    starts[b * (rows + 1) + rows] = static_cast<int32_t>(made);
  }
  return made;
} catch (const std::bad_alloc&) {
  return -1;
}
