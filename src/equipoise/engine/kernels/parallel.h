// Work shared between threads.
#pragma once
#include <cstdint>

// Calls body(context, task) for every task in [0, count), on up to `threads` threads, in any order.
void eq_parallel(int64_t count, int threads, void (*body)(void*, int64_t), void* context);

// The same for a callable.
template <typename Body>
void parallel_for(int64_t count, int threads, Body&& body) {
  if (threads <= 1 || count <= 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  struct Call {
    static void one(void* context, int64_t task) { (*static_cast<Body*>(context))(task); }
  };
  eq_parallel(count, threads, &Call::one, &body);
}
