#include "cpp/base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <chrono>

#include "pagedcore/error.h"

namespace pagedcore {
namespace {

using Clock = std::chrono::steady_clock;

// Long enough to bridge the serial parts of a step, short enough not to be seen in `top`.
constexpr std::chrono::microseconds kSpinTime{200};
// Longer than most waits: on a busy machine, whoever yields may get the processor back
// milliseconds later.
constexpr std::chrono::microseconds kPatience{20};
constexpr int kPollsPerClockRead = 1024;

void pause_briefly() { std::atomic_signal_fence(std::memory_order_seq_cst); }

// Polls until done(), at most for `limit`; returns whether it was. Yields after some patience, as
// the awaited thread may be waiting for this very processor.
template <typename Done>
bool poll(Clock::duration limit, Done&& done) {
  const Clock::time_point start = Clock::now();
  while (true) {
    for (int i = 0; i < kPollsPerClockRead; ++i) {
      if (done()) return true;
      pause_briefly();
    }
    const Clock::duration waited = Clock::now() - start;
    if (waited >= limit) return false;
    if (waited >= kPatience) std::this_thread::yield();
  }
}

}  // namespace

int num_usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

ThreadPool::ThreadPool(int num_threads) {
  PAGEDCORE_REQUIRE(num_threads >= 1, "num_threads must be at least 1, got ", num_threads);
  workers_.reserve(num_threads - 1);
  for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  stopping_ = true;
  run_erased([](void*, int) {}, nullptr);
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_erased(Task task, void* context) {
  if (workers_.empty()) {
    task(context, 0);
    return;
  }
  task_ = task;
  context_ = context;
  num_running_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_seq_cst);
  if (num_sleeping_.load(std::memory_order_seq_cst) > 0) {
    const std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }
  task(context, 0);
  poll(Clock::duration::max(), [&] { return num_running_.load(std::memory_order_acquire) == 0; });
}

std::uint32_t ThreadPool::await_round(std::uint32_t seen) {
  std::uint32_t round = seen;
  const auto has_begun = [&] {
    round = round_.load(std::memory_order_acquire);
    return round != seen;
  };
  if (poll(kSpinTime, has_begun)) return round;

  std::unique_lock<std::mutex> lock(mutex_);
  num_sleeping_.fetch_add(1, std::memory_order_seq_cst);
  wake_.wait(lock, [&] { return round_.load(std::memory_order_seq_cst) != seen; });
  num_sleeping_.fetch_sub(1, std::memory_order_relaxed);
  return round_.load(std::memory_order_acquire);
}

void ThreadPool::work(int thread) {
  std::uint32_t seen = 0;
  while (true) {
    seen = await_round(seen);
    const bool last = stopping_;
    task_(context_, thread);
    num_running_.fetch_sub(1, std::memory_order_release);
    if (last) return;
  }
}

}  // namespace pagedcore
