// The worker pool. Where the system allows it, each worker is pinned to one of the cores this process may use.
#include "threads.h"

#include <chrono>
#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace {

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr int SPINS = 4000;                                     // tens of microseconds before the first yield
constexpr auto STAY_AWAKE = std::chrono::microseconds(400);     // between two jobs, longer than Python's part of a decode step

template <class Ready> void spin_until(Ready ready) {
  for (int i = 0; i < SPINS; i++) {
    if (ready()) return;
    relax();
  }
  while (!ready()) std::this_thread::yield();
}

// Pins the calling thread to the worker-th core of those the process may use. Worker 0 is the caller and is left alone.
void pin_to_core(int worker) {
#if defined(__linux__)
  cpu_set_t allowed, one;
  if (sched_getaffinity(0, sizeof allowed, &allowed) || CPU_COUNT(&allowed) <= worker) return;
  for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE; cpu++)
    if (CPU_ISSET(cpu, &allowed) && seen++ == worker) {
      CPU_ZERO(&one);
      CPU_SET(cpu, &one);
      pthread_setaffinity_np(pthread_self(), sizeof one, &one);
      return;
    }
#else
  (void)worker;
#endif
}

}  // namespace

void Barrier::wait() {
  const unsigned round = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == n_) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
  } else {
    spin_until([&] { return round_.load(std::memory_order_acquire) != round; });
  }
}

Pool::Pool(int n_threads) : n_(n_threads), barrier_(n_threads) {
  for (int i = 1; i < n_; i++) threads_.emplace_back([this, i] { work(i); });
}

Pool::~Pool() {
  {
    std::lock_guard lock(sleep_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto &t : threads_) t.join();
}

void Pool::run(const std::function<void(int, int)> &job) {
  std::lock_guard turn(turn_);
  job_ = &job;
  running_.store(n_ - 1, std::memory_order_relaxed);
  job_number_.fetch_add(1);  // sequentially consistent with sleeping_: a worker that saw the old number has raised sleeping_
  if (sleeping_.load()) {
    std::lock_guard lock(sleep_);
    wake_.notify_all();
  }
  job(0, n_);
  spin_until([&] { return running_.load(std::memory_order_acquire) == 0; });
}

void Pool::work(int worker) {
  pin_to_core(worker);
  unsigned seen = 0;
  for (;;) {
    const auto ready = [&] { return job_number_.load() != seen || stop_.load(std::memory_order_relaxed); };
    const auto tired = std::chrono::steady_clock::now() + STAY_AWAKE;
    while (!ready() && std::chrono::steady_clock::now() < tired)
      for (int i = 0; i < 64 && !ready(); i++) relax();
    if (!ready()) {
      std::unique_lock lock(sleep_);
      sleeping_.fetch_add(1);
      wake_.wait(lock, ready);
      sleeping_.fetch_sub(1);
    }
    if (stop_) return;
    seen = job_number_.load();
    (*job_)(worker, n_);
    running_.fetch_sub(1, std::memory_order_release);
  }
}
