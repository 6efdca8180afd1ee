// Threads come from the OpenMP runtime that torch has loaded already, if it told us of one: two
// pools of spinning threads on the same cores would slow each other down.
#include "parallel.h"

#include <atomic>
#include <thread>
#include <vector>

namespace {

using Fork = void (*)(void (*)(void*), void*, unsigned, unsigned);
Fork fork_team = nullptr;

struct Team {
  std::atomic<int64_t> next{0};
  int64_t count;
  void (*body)(void*, int64_t);
  void* context;
};

void work(void* argument) {
  Team& team = *static_cast<Team*>(argument);
  for (;;) {
    int64_t task = team.next.fetch_add(1, std::memory_order_relaxed);
    if (task >= team.count) return;
    team.body(team.context, task);
  }
}

}  // namespace

// `fork` is GOMP_parallel of the runtime to use, or null for threads of our own.
extern "C" void eq_use_threads_of(void* fork) { fork_team = reinterpret_cast<Fork>(fork); }

void eq_parallel(int64_t count, int threads, void (*body)(void*, int64_t), void* context) {
  Team team;
  team.count = count;
  team.body = body;
  team.context = context;
  if (count < threads) threads = static_cast<int>(count);
  if (fork_team != nullptr) {
    fork_team(&work, &team, static_cast<unsigned>(threads), 0);
    return;
  }
  std::vector<std::thread> helpers;
  helpers.reserve(threads - 1);
  for (int i = 1; i < threads; ++i) helpers.emplace_back(&work, &team);
  work(&team);
  for (auto& helper : helpers) helper.join();
}
