// The worker pool: one persistent thread per core, the caller being worker 0, and the barrier they meet at.
//
// Owns threads and waiting, knows nothing of what they compute. Waiting spins briefly, because a decode step meets hundreds
// of barriers a few microseconds apart, then yields and finally sleeps, because other programs need the processor too.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

class Barrier {
 public:
  explicit Barrier(int n) : n_(n) {}
  void wait();

 private:
  const int n_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> round_{0};
};

class Pool {
 public:
  explicit Pool(int n_threads);
  ~Pool();
  Pool(const Pool &) = delete;
  int size() const { return n_; }
  // Runs job(worker, n_workers) on every worker and returns when all are done. Callers from several threads take turns.
  void run(const std::function<void(int, int)> &job);
  Barrier &barrier() { return barrier_; }

 private:
  void work(int worker);
  const int n_;
  Barrier barrier_;
  std::mutex turn_, sleep_;
  std::condition_variable wake_;
  alignas(64) std::atomic<unsigned> job_number_{0};
  alignas(64) std::atomic<int> running_{0};
  std::atomic<int> sleeping_{0};
  std::atomic<bool> stop_{false};
  const std::function<void(int, int)> *job_ = nullptr;
  std::vector<std::thread> threads_;
};
