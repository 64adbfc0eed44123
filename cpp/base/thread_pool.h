#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace pagedcore {

// A fork-join pool: run(f) calls f(thread_index) once on each of size() threads, the caller being
// thread 0, and returns when all are done. Workers spin briefly between runs, then sleep. One
// caller at a time. `f` must not throw.
class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  template <typename F>
  void run(F&& f) {
    using Function = std::remove_reference_t<F>;
    run_erased([](void* context, int thread) { (*static_cast<Function*>(context))(thread); }, &f);
  }

 private:
  using Task = void (*)(void* context, int thread);

  void run_erased(Task task, void* context);
  void work(int thread);
  // Waits until `round_` differs from `seen` and returns it.
  std::uint32_t await_round(std::uint32_t seen);

  std::vector<std::thread> workers_;
  Task task_ = nullptr;
  void* context_ = nullptr;
  bool stopping_ = false;
  alignas(64) std::atomic<std::uint32_t> round_{0};
  alignas(64) std::atomic<int> num_running_{0};
  std::atomic<int> num_sleeping_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

// Processors that this process may use (its affinity mask), at least 1.
int num_usable_cpus();

}  // namespace pagedcore
