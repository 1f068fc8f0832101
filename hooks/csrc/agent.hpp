// The helper thread of a process with jobs: it sees requests complete, closes gates in time, beats, and clears
// up after the dead. It makes no CUDA call and never takes the GIL. A second thread watches a gate on standby.
#pragma once

#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>

#include <memory>
#include <vector>

#include "process.hpp"
#include "requests.hpp"
#include "table.hpp"

namespace herald {

class Agent {
 public:
  static constexpr int64_t kBeatNs = 100'000'000;  // heartbeat and reaping: the dead hold a gate at most this long
  static constexpr int64_t kPollNs = 20'000;       // between two looks at completion words
  static constexpr int64_t kWatchNs = 50'000'000;  // between two looks of the watch at a gate that stays as it is
  static constexpr int64_t kBacklogNs = 1'000'000;  // between two looks at what is still queued once a gate is open
  static constexpr int64_t kPromiseNs = 1'000'000'000;  // for how long closes are to wake a trainer on standby

  // A table this process uses, watched from the first job on and for good: a captured CUDA graph keeps its waits
  // after its job is gone, and someone must clear up after a service that dies.
  // False when the thread cannot be started: such a job would have nobody to open a dead service's gate.
  bool watch_table(TableView table, int lock_fd, uint64_t self) {
    Guard guard(mutex_);
    if (!start()) return false;
    for (const Watched& w : tables_) {
      if (&w.table.header() == &table.header()) return true;
    }
    tables_.push_back({table, lock_fd, self});
    return true;
  }

  void add_high(std::shared_ptr<HighJob> job) {
    Guard guard(mutex_);
    high_.push_back(std::move(job));
  }

  void remove_high(const HighJob* job) {
    Guard guard(mutex_);
    for (size_t i = 0; i < high_.size(); ++i) {
      if (high_[i].get() == job) high_.erase(high_.begin() + static_cast<ptrdiff_t>(i--));
    }
  }

  // The gate of the low-priority job (one a process): its heartbeat and its hook, which is on. Null: none any more.
  void set_gate(Gate* gate) {
    Guard guard(mutex_);
    gate_ = gate;
    if (gate_) gate_->row().armed.store(1, std::memory_order_relaxed);
  }

  // Look at once at whether the hook is needed.
  void arm_now() {
    Guard guard(mutex_);
    if (gate_) gate_->standby().arm(arm_callbacks);
  }

  // Look again now (a request ends on its stream) or by `alarm_ns` (a gate must close).
  void wake(int64_t alarm_ns) {
    {
      Guard guard(wake_mutex_);
      if (alarm_ns >= alarm_ns_) return;
      alarm_ns_ = alarm_ns;
    }
    wake_.fetch_add(1, std::memory_order_release);
    futex(&wake_, FUTEX_WAKE_PRIVATE, 1, nullptr);
  }

 private:
  struct Watched {
    TableView table;
    int lock_fd;
    uint64_t self;
  };

  bool start() {
    if (!started_) started_ = start_thread([](void* self) -> void* { static_cast<Agent*>(self)->run(); });
    return started_;
  }

  bool start_thread(void* (*body)(void*)) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);  // signals belong to the job's own threads
    pthread_t thread;
    const bool started = pthread_create(&thread, nullptr, body, this) == 0;
    if (started) pthread_detach(thread);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return started;
  }

  [[noreturn]] void run() {
    prctl(PR_SET_NAME, "herald-agent");
    prctl(PR_SET_TIMERSLACK, 1000ul);  // the default 50 us would more than double a poll
    int64_t next_beat = 0;
    for (;;) {
      const int64_t now = now_ns();
      int64_t next = next_beat;
      bool polling = false;
      {
        Guard guard(mutex_);
        for (const auto& job : high_) next = std::min(next, job->watch(now, &polling));
        if (gate_) {
          Standby& standby = gate_->standby();
          next = std::min(next, standby.look(now));
          if (standby.is_on() && standby.listens()) keep_watch();
          standby.arm(arm_callbacks);
        }
        if (now >= next_beat) {
          next_beat = now + kBeatNs;
          if (gate_) gate_->row().heartbeat_ns.store(static_cast<uint64_t>(now), std::memory_order_relaxed);
          for (const Watched& w : tables_) w.table.reap(w.lock_fd, w.self, now);
        }
      }
      rest(std::min(next, next_beat), polling);
    }
  }

  // A thread for the gate of a trainer on standby: looks every few ms are too late for it.
  void keep_watch() {
    if (watching_) {
      watch_.fetch_add(1, std::memory_order_release);
      futex(&watch_, FUTEX_WAKE_PRIVATE, 1, nullptr);
      return;
    }
    watching_ = start_thread([](void* self) -> void* { static_cast<Agent*>(self)->watch(); });
  }

  [[noreturn]] void watch() {
    prctl(PR_SET_NAME, "herald-standby");
    prctl(PR_SET_TIMERSLACK, 1000ul);
    for (;;) {
      const a32* word = nullptr;
      uint32_t seen = 0;
      Standby* woken = nullptr;
      uint32_t drain = 0;
      bool listens = false;
      const uint32_t asked = watch_.load(std::memory_order_acquire);
      {
        Guard guard(mutex_);
        if (gate_ && gate_->standby().is_on()) {
          Standby& standby = gate_->standby();
          standby.watch_until(now_ns() + kPromiseNs);
          word = &gate_->word();
          seen = word->load(std::memory_order_seq_cst);  // what comes after it ends the wait below
          const bool listened = standby.listens();
          standby.arm(arm_callbacks);
          listens = standby.listens();
          if (!listened && listens) {
            woken = &standby;
            drain = standby.num_drains();
          }
        }
      }
      if (woken) woken->measure_drain(drain);
      // Until it can rest, it is looked at whether all has run.
      const timespec nap{0, seen == 0 && listens ? kBacklogNs : kWatchNs};
      if (word) {
        futex(word, FUTEX_WAIT, seen, &nap);
      } else {
        futex(&watch_, FUTEX_WAIT_PRIVATE, asked, &nap);
      }
    }
  }

  void rest(int64_t until_ns, bool polling) {
    if (polling) {
      const timespec nap{0, kPollNs};
      nanosleep(&nap, nullptr);
      return;
    }
    const uint32_t seen = wake_.load(std::memory_order_acquire);
    {
      // A wake that came while this thread was looking has lowered the alarm: do not sleep past it.
      Guard guard(wake_mutex_);
      until_ns = std::min(until_ns, alarm_ns_);
      alarm_ns_ = until_ns;  // no wake for anything later: the next look is then
    }
    const int64_t left = until_ns - now_ns();
    if (left > 0) {
      const timespec nap{left / 1'000'000'000, left % 1'000'000'000};
      futex(&wake_, FUTEX_WAIT_PRIVATE, seen, &nap);
    }
    Guard guard(wake_mutex_);
    alarm_ns_ = INT64_MAX;  // what is asked for from now on may be too late for the look that follows
  }

  Mutex mutex_;
  std::vector<Watched> tables_;
  std::vector<std::shared_ptr<HighJob>> high_;
  Gate* gate_ = nullptr;
  bool started_ = false;
  bool watching_ = false;
  a32 watch_{0};  // counts calls for the watch, for its futex while it has nothing to watch

  Mutex wake_mutex_;
  a32 wake_{0};  // counts wakes, for the futex
  int64_t alarm_ns_ = INT64_MAX;  // when to look next; while looking: the earliest time asked for since
};

}  // namespace herald
