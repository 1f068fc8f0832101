// The shared table of a domain: layout and the operations on it that must be atomic across processes.
//
// Header-only, torch-free, CUDA-free. Included by table.cpp (the C ABI for Python) and by the op hook. The Python
// view is herald/layout.py; herald_table_layout() lets a test compare the two.
//
// Ownership: one writer per field, named on the field. Gate words are the exception by design: every high-priority
// job owns one bit, changed with atomic or / and only.
#pragma once

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace herald {

constexpr uint64_t kMagic = 0x31304c4152454811ull;  // unprintable first byte: no text file passes for a table
constexpr uint32_t kVersion = 4;
constexpr uint32_t kMaxJobs = 64;
constexpr uint32_t kMaxDevices = 16;
constexpr uint32_t kNumClasses = 4;  // 0: whose bits could close (see attached()), 1 heavy; two more for finer classes
constexpr uint32_t kClassAttached = 0;
constexpr uint32_t kClassHeavy = 1;
constexpr uint32_t kGateStride = 64;  // bytes between gate words: one cache line each
constexpr uint32_t kHistogramBuckets = 512;

constexpr int64_t kLeadAlways = int64_t{1} << 62;  // close when a request begins
constexpr int64_t kLeadNever = -kLeadAlways;       // never close for lack of slack
constexpr int64_t kNoDeadline = INT64_MAX;

// A job whose own watcher has been silent for this long is stopped or wedged; others take its gate bit away.
constexpr int64_t kWedgedNs = 2'000'000'000;
constexpr int64_t kAbandonedNs = 10'000'000'000;  // without a beat of its daemon, a domain has none

enum RowState : uint32_t { kFree = 0, kLive = 1 };
enum Priority : uint32_t { kLow = 1, kHigh = 2 };

using a32 = std::atomic<uint32_t>;
using a64 = std::atomic<uint64_t>;
using i64 = std::atomic<int64_t>;
static_assert(a32::is_always_lock_free && a64::is_always_lock_free, "atomics must work across processes");

struct Header {
  // Set by the creator under the membership lock; read-only after `magic`, which is written last.
  a64 magic;
  uint32_t version;
  uint32_t num_rows;
  uint64_t total_bytes;
  uint64_t page_bytes;
  uint64_t epoch_ns;  // CLOCK_REALTIME at creation: tells one table from the next
  uint32_t rows_offset;
  uint32_t row_bytes;
  uint32_t gates_offset;
  uint32_t gates_bytes;
  // Set by the daemon (defaults by the creator).
  i64 max_hold_ns;   // longest time that a device's gate stays closed
  i64 breather_ns;   // then it stays open at least this long
  i64 quantum_ns;    // predicted heavy time between two waits of a gated stream
  // Set by the daemon while it holds the daemon lock.
  alignas(64) a64 daemon_heartbeat_ns;
  uint64_t daemon_started_ns;
  a32 daemon_pid;  // for people; liveness is the lock
  char daemon_host[68];
  char policy[32];
  char mps_pipe[128];  // CUDA_MPS_PIPE_DIRECTORY of the domain; empty without MPS
  // Set under the membership lock, append-only: "cpu" or a GPU's UUID.
  alignas(64) char devices[kMaxDevices][64];
};

// Per device, set by whoever closes or forces the gate (atomics; a late store only shortens or lengthens one hold).
struct alignas(64) DeviceHold {
  i64 closed_since_ns;   // when the gate went from open to closed, less what openings have not made up for
  i64 opened_ns;         // when it last went from closed to open
  i64 breathe_until_ns;  // nobody closes before this
  a64 forced;            // times the gate was forced open
  i64 standby_until_ns;  // until then some trainer's hook may rest that is to be woken by a close (set by trainers)
  i64 closed_ns;         // when it last went from open to closed
};

struct JobRow {
  // Identity: set by the job at claim, read-only until freed.
  alignas(64) a32 state;
  a32 generation;
  uint32_t priority;
  uint32_t device;
  uint32_t pid;   // for people: means nothing across containers
  uint32_t bit;   // high priority: this job's bit in the gate words
  uint32_t mps;   // 1 when the job runs under MPS
  uint32_t target_ppm;  // share of requests that must meet the SLO
  uint64_t owner;  // random token of the owning process: a process never reaps itself
  int64_t slo_ns;       // of a whole request, arrival -> done; 0: none
  int64_t ttft_slo_ns;  // arrival -> first token; 0: none
  int64_t tpot_slo_ns;  // mean time per further token; 0: none
  uint32_t weight_ppm;  // low priority: its share beside others of low priority
  uint32_t floor_ppm;   // low priority: the share of time that it is promised after a hold of max_hold
  uint64_t attached_ns;
  char name[48];
  // Plan: set by the daemon; the job sets the default (strict) when it claims the row, and when the daemon is gone.
  alignas(64) i64 lead_ns;  // of a request whose progress is not known, and at its begin
  a32 queue_limit;
  // The lead from progress: margin + predicted remaining time (its quantile) x inflation.
  a32 inflation_ppm;  // 0: no, lead_ns throughout
  i64 margin_ns;
  a32 quantile_ppm;
  a32 infeasible;  // why the SLO cannot be held whatever the plan: 0 it can, else an index of REASONS in layout.py
  i64 slice_ns;  // while a request is open, close and open the gate in turns of this length; 0: no
  // Plan of a low-priority job, likewise (default: all zero).
  a32 sm_count;   // SMs that its ops may run on, from the next step on; 0: all
  a32 rate_ppm;   // predicted device time that it may issue, of time; 0: no limit
  i64 ahead_ns;   // how far its host may run ahead of the GPU, in predicted time; 0: the default
  i64 needed_ns;  // high priority, infeasible: the tightest SLO that could be held
  // State and counters: set by the job.
  alignas(64) a64 heartbeat_ns;
  a64 hold_since_ns;  // 0: this job does not hold the gate
  i64 oldest_deadline_ns;
  a32 open_requests;
  a32 progress_ppm;    // done of that request; 0 too while not known
  a64 requests_begun;
  a64 requests_done;
  a64 slo_met;
  a64 slo_missed;
  a64 closes;          // times this job closed the gate
  a64 held_ns;         // total time it held it
  a64 requests_overdue;  // requests that lost the gate for overrunning max_hold
  i64 remaining_ns;    // predicted, of the open request with the earliest deadline, at the last look; -1: not known
  a64 progress_scored;     // finished requests with a prediction at their middle
  a64 progress_error_ppm;  // sum of their errors: |predicted - actual| / actual remaining time, in millionths
  a64 busy_ns;         // time with work at hand: an open request, or an open step where an engine says its steps
  a64 busy_open_ns;    // of it with the gate of the device open
  a64 solo_requests;   // requests (steps) that ran with the gate closed by this job all the while
  a64 solo_ns;         // their service time, from the end of the one before in their queue
  a64 beside_requests; // requests (steps) that ran with the gate of the device open all the while
  a64 beside_ns;       // their service time, likewise
  i64 alone_ns;        // learnt service time of a request (step) alone, 95th percentile; -1: not known
  a64 missed_anyway;   // of slo_missed: would have missed alone, too, by the learnt service times
  a64 tokens;          // told by an engine
  a32 queued;          // requests that wait outside, told by an engine
  a32 engine;          // 1: steps, not requests, are what needs the device
  alignas(64) a64 ops_seen;     // ops looked up
  a64 ops_unknown;     // device ops without a known time
  a64 gate_points;     // places where the gate was consulted or a wait enqueued
  a64 gate_waits;      // host gate: times an op waited
  a64 gate_wait_ns;    // host gate: total
  a64 gated_ns;        // predicted device time behind the gate
  a64 light_ns;        // predicted device time let through as light
  a64 longest_op_ns;   // longest stretch that a close cannot stop: of an op, or lately measured
  a64 throttle_ns;     // host time spent bounding the run-ahead
  a32 armed;           // 1: the hook is on, or a close wakes it; 0: it rests, since no service could close its gates
  a32 sm_total;        // SMs of its device if it can keep to a share of them; 0: it cannot
  a64 sampled_ns;      // measured device time of sampled stretches of a busy stream
  a64 covered_ns;      // of it: predicted time of ops that passed the gate
  a32 sm_granted;      // SMs that its ops run on now; 0: all
  a32 reserved2;
  a64 sm_switches;     // changes of that
  a64 sm_switch_ns;    // host time that they took
  a64 train_steps;     // optimizer steps
  alignas(64) a32 latency[kHistogramBuckets];  // arrival -> done
  alignas(64) a32 service[kHistogramBuckets];  // begin -> done
  alignas(64) a32 ttft[kHistogramBuckets];     // arrival -> first token
  alignas(64) a32 tpot[kHistogramBuckets];     // mean time per further token, a value per request
};
static_assert(sizeof(JobRow) % 64 == 0);

inline int64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

inline long futex(const a32* word, int op, uint32_t value, const timespec* timeout) {
  return syscall(SYS_futex, reinterpret_cast<const uint32_t*>(word), op, value, timeout, nullptr, 0);
}

// How long before its deadline a request with `remaining_ns` of predicted work closes the gate.
inline int64_t lead_from_progress(int64_t margin_ns, int64_t remaining_ns, uint32_t inflation_ppm) {
  constexpr int64_t kMillion = 1'000'000;
  const int64_t part = remaining_ns % kMillion * inflation_ppm;
  return margin_ns + remaining_ns / kMillion * inflation_ppm + (part + kMillion - 1) / kMillion;
}

// HDR-style buckets of microseconds: exact below 16, then 16 per octave (relative width 1/16).
inline uint32_t bucket_of(int64_t ns) {
  const uint64_t us = ns <= 0 ? 0 : static_cast<uint64_t>(ns) / 1000;
  if (us < 16) return static_cast<uint32_t>(us);
  const uint32_t exponent = 63 - static_cast<uint32_t>(__builtin_clzll(us));
  const uint32_t index = (exponent - 3) * 16 + static_cast<uint32_t>((us >> (exponent - 4)) & 15);
  return index < kHistogramBuckets ? index : kHistogramBuckets - 1;
}

// Bytes of the lock file (POSIX record locks, freed by the kernel at death, never inherited by fork).
constexpr off_t kMembershipByte = 0;  // who creates, claims or resets
constexpr off_t kFirstJobByte = 1;
constexpr off_t kDaemonByte = 1 + kMaxJobs;  // the one after it is taken, too: layout.KEEPER_BYTE

inline bool lock_byte(int fd, off_t byte, bool wait) {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  while (fcntl(fd, wait ? F_SETLKW : F_SETLK, &lock) != 0) {
    if (errno != EINTR) return false;
  }
  return true;
}

// True when another process holds the byte. Takes nothing.
inline bool byte_is_held(int fd, off_t byte) {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  return fcntl(fd, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

inline void unlock_byte(int fd, off_t byte) {
  struct flock lock {};
  lock.l_type = F_UNLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  fcntl(fd, F_SETLK, &lock);
}

// A mapped table. Cheap to copy; owns nothing.
class TableView {
 public:
  explicit TableView(void* base = nullptr) : base_(static_cast<char*>(base)) {}

  static constexpr uint64_t align_up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }
  static constexpr uint64_t holds_offset() { return align_up(sizeof(Header), 64); }
  static constexpr uint64_t rows_offset() { return holds_offset() + kMaxDevices * sizeof(DeviceHold); }
  static constexpr uint64_t gates_offset(uint64_t page) {
    return align_up(rows_offset() + kMaxJobs * sizeof(JobRow), page);
  }
  static constexpr uint64_t gates_bytes(uint64_t page) {
    return align_up(uint64_t{kMaxDevices} * kNumClasses * kGateStride, page);
  }
  static constexpr uint64_t total_bytes(uint64_t page) { return gates_offset(page) + gates_bytes(page); }

  explicit operator bool() const { return base_ != nullptr; }
  Header& header() const { return *reinterpret_cast<Header*>(base_); }
  DeviceHold& hold(uint32_t device) const {
    return reinterpret_cast<DeviceHold*>(base_ + holds_offset())[device];
  }
  JobRow& row(uint32_t i) const { return reinterpret_cast<JobRow*>(base_ + rows_offset())[i]; }
  char* gates() const { return base_ + header().gates_offset; }
  a32& gate(uint32_t device, uint32_t cls) const {
    return *reinterpret_cast<a32*>(gates() + (uint64_t{device} * kNumClasses + cls) * kGateStride);
  }

  // The high-priority jobs of a device whose plans may close its gate, a bit each: light ops have no gate, so their word
  // says so. Set at claim; then the job's own.
  a32& attached(uint32_t device) const { return gate(device, kClassAttached); }

  // A fresh, zeroed segment becomes a table. Under the membership lock.
  void initialise(uint64_t page, uint64_t epoch_ns) const {
    Header& h = header();
    h.version = kVersion;
    h.num_rows = kMaxJobs;
    h.total_bytes = total_bytes(page);
    h.page_bytes = page;
    h.epoch_ns = epoch_ns;
    h.rows_offset = static_cast<uint32_t>(rows_offset());
    h.row_bytes = sizeof(JobRow);
    h.gates_offset = static_cast<uint32_t>(gates_offset(page));
    h.gates_bytes = static_cast<uint32_t>(gates_bytes(page));
    h.max_hold_ns.store(10'000'000'000, std::memory_order_relaxed);
    h.breather_ns.store(500'000'000, std::memory_order_relaxed);
    h.quantum_ns.store(250'000, std::memory_order_relaxed);
    h.magic.store(kMagic, std::memory_order_release);
  }

  // Closing and opening. The order in close() matters: whoever sees the word closed also sees a fresh start time.
  void close_gate(uint32_t device, uint32_t bit, int64_t now) const {
    a32& word = gate(device, kClassHeavy);
    if (word.load(std::memory_order_relaxed) == 0) {
      hold(device).closed_since_ns.store(now - owed_ns(device, now), std::memory_order_release);
      hold(device).closed_ns.store(now, std::memory_order_release);
    }
    const uint32_t before = word.fetch_or(1u << bit, std::memory_order_seq_cst);
    if (before == 0 && now < hold(device).standby_until_ns.load(std::memory_order_seq_cst)) {
      futex(&word, FUTEX_WAKE, INT_MAX, nullptr);
    }
  }

  void open_gate(uint32_t device, uint32_t bit) const { clear_bits(device, 1u << bit); }

  void force_open(uint32_t device, int64_t now) const {
    DeviceHold& h = hold(device);
    h.breathe_until_ns.store(now + header().breather_ns.load(std::memory_order_relaxed), std::memory_order_release);
    h.forced.fetch_add(1, std::memory_order_relaxed);
    clear_bits(device, ~0u);
  }

  bool may_close(uint32_t device, int64_t now) const {
    return now >= hold(device).breathe_until_ns.load(std::memory_order_acquire);
  }

  // Frees the rows of dead jobs, takes the bits of wedged ones, forces gates that overran. Anyone may call it, any
  // time; `lock_fd` < 0 means that liveness is unknown (tests). Returns a bitmask of the rows freed.
  uint64_t reap(int lock_fd, uint64_t self, int64_t now) const {
    uint64_t freed = 0;
    for (uint32_t i = 0; i < kMaxJobs; ++i) {
      JobRow& job = row(i);
      if (job.state.load(std::memory_order_acquire) != kLive || job.owner == self) continue;
      if (lock_fd >= 0 && reap_row(i, lock_fd, self)) {
        freed |= uint64_t{1} << i;
      } else if (is_wedged(job, now)) {
        open_gate(job.device, job.bit);
      }
    }
    for (uint32_t device = 0; device < kMaxDevices; ++device) force_if_overdue(device, now);
    return freed;
  }

  void force_if_overdue(uint32_t device, int64_t now) const {
    if (gate(device, kClassHeavy).load(std::memory_order_acquire) == 0) return;
    const int64_t since = hold(device).closed_since_ns.load(std::memory_order_acquire);
    if (now - since > header().max_hold_ns.load(std::memory_order_relaxed)) force_open(device, now);
  }

  // The row's lock must be held by the caller.
  void free_row(uint32_t i) const {
    JobRow& job = row(i);
    if (job.priority == kHigh) {
      open_gate(job.device, job.bit);
      attached(job.device).fetch_and(~(1u << job.bit), std::memory_order_seq_cst);
    }
    job.state.store(kFree, std::memory_order_release);
  }

 private:
  void clear_bits(uint32_t device, uint32_t bits) const {
    for (uint32_t cls = 1; cls < kNumClasses; ++cls) {
      a32& word = gate(device, cls);
      const uint32_t before = word.fetch_and(~bits, std::memory_order_seq_cst);
      if (before == 0 || (before & ~bits) != 0) continue;
      if (cls == kClassHeavy) hold(device).opened_ns.store(now_ns(), std::memory_order_relaxed);
      futex(&word, FUTEX_WAKE, INT_MAX, nullptr);
    }
  }

  // Closed time that has not been made up for: an opening pays back max_hold / breather times its length, so that a
  // service that reopens for an instant between requests does not escape the floor.
  int64_t owed_ns(uint32_t device, int64_t now) const {
    const DeviceHold& h = hold(device);
    const int64_t opened = h.opened_ns.load(std::memory_order_relaxed);
    const int64_t closed_for = opened - h.closed_since_ns.load(std::memory_order_relaxed);
    const int64_t breather = header().breather_ns.load(std::memory_order_relaxed);
    if (opened == 0 || closed_for <= 0 || breather <= 0) return 0;
    const double rate = static_cast<double>(header().max_hold_ns.load(std::memory_order_relaxed)) / breather;
    const double owed = static_cast<double>(closed_for) - static_cast<double>(now - opened) * rate;
    return owed > 0 ? static_cast<int64_t>(owed) : 0;
  }

  static bool is_wedged(const JobRow& job, int64_t now) {
    return job.priority == kHigh && job.hold_since_ns.load(std::memory_order_relaxed) != 0 &&
           now - static_cast<int64_t>(job.heartbeat_ns.load(std::memory_order_relaxed)) > kWedgedNs;
  }

  // Takes the dead job's lock first, so that two processes never free one row twice. Record locks do not exclude
  // threads of one process: another thread may have freed the row and claimed it by now, and its lock is then ours.
  bool reap_row(uint32_t i, int lock_fd, uint64_t self) const {
    if (!lock_byte(lock_fd, kFirstJobByte + i, false)) return false;
    const bool live = row(i).state.load(std::memory_order_acquire) == kLive;
    if (live && row(i).owner == self) return false;
    const bool dead = live;
    if (dead) free_row(i);
    unlock_byte(lock_fd, kFirstJobByte + i);
    return dead;
  }

  char* base_;
};

}  // namespace herald
