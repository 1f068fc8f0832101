// C ABI of the shared table, called by herald/native.py through ctypes. No function here blocks or throws, except
// herald_lock with wait and herald_gate_wait with a timeout.
#include "table.hpp"

#include <cstdio>
#include <string>

using namespace herald;

namespace {

struct Field {
  const char* name;
  size_t offset;
  size_t bytes;
};

#define HERALD_FIELD(type, field) Field{#type "." #field, offsetof(type, field), sizeof(type::field)}

// What a Python reader of the layout must agree on. Only what crosses the language border is listed.
const Field kFields[] = {
    HERALD_FIELD(Header, magic), HERALD_FIELD(Header, version), HERALD_FIELD(Header, num_rows),
    HERALD_FIELD(Header, total_bytes), HERALD_FIELD(Header, page_bytes), HERALD_FIELD(Header, epoch_ns),
    HERALD_FIELD(Header, rows_offset), HERALD_FIELD(Header, row_bytes), HERALD_FIELD(Header, gates_offset),
    HERALD_FIELD(Header, gates_bytes), HERALD_FIELD(Header, max_hold_ns), HERALD_FIELD(Header, breather_ns),
    HERALD_FIELD(Header, quantum_ns), HERALD_FIELD(Header, daemon_heartbeat_ns),
    HERALD_FIELD(Header, daemon_started_ns), HERALD_FIELD(Header, daemon_pid), HERALD_FIELD(Header, daemon_host),
    HERALD_FIELD(Header, policy), HERALD_FIELD(Header, mps_pipe), HERALD_FIELD(Header, devices),
    HERALD_FIELD(DeviceHold, closed_since_ns), HERALD_FIELD(DeviceHold, opened_ns),
    HERALD_FIELD(DeviceHold, breathe_until_ns),
    HERALD_FIELD(DeviceHold, standby_until_ns),
    HERALD_FIELD(DeviceHold, closed_ns),
    HERALD_FIELD(DeviceHold, forced),
    HERALD_FIELD(JobRow, state), HERALD_FIELD(JobRow, generation), HERALD_FIELD(JobRow, priority),
    HERALD_FIELD(JobRow, device), HERALD_FIELD(JobRow, pid), HERALD_FIELD(JobRow, bit), HERALD_FIELD(JobRow, mps),
    HERALD_FIELD(JobRow, target_ppm), HERALD_FIELD(JobRow, owner), HERALD_FIELD(JobRow, slo_ns),
    HERALD_FIELD(JobRow, attached_ns), HERALD_FIELD(JobRow, name), HERALD_FIELD(JobRow, lead_ns),
    HERALD_FIELD(JobRow, queue_limit), HERALD_FIELD(JobRow, inflation_ppm), HERALD_FIELD(JobRow, margin_ns),
    HERALD_FIELD(JobRow, quantile_ppm), HERALD_FIELD(JobRow, progress_ppm), HERALD_FIELD(JobRow, remaining_ns),
    HERALD_FIELD(JobRow, progress_scored), HERALD_FIELD(JobRow, progress_error_ppm), HERALD_FIELD(JobRow, heartbeat_ns),
    HERALD_FIELD(JobRow, hold_since_ns), HERALD_FIELD(JobRow, oldest_deadline_ns),
    HERALD_FIELD(JobRow, open_requests), HERALD_FIELD(JobRow, requests_begun), HERALD_FIELD(JobRow, requests_done),
    HERALD_FIELD(JobRow, slo_met), HERALD_FIELD(JobRow, slo_missed), HERALD_FIELD(JobRow, closes),
    HERALD_FIELD(JobRow, held_ns), HERALD_FIELD(JobRow, requests_overdue), HERALD_FIELD(JobRow, ops_seen),
    HERALD_FIELD(JobRow, ops_unknown), HERALD_FIELD(JobRow, gate_points), HERALD_FIELD(JobRow, gate_waits),
    HERALD_FIELD(JobRow, gate_wait_ns), HERALD_FIELD(JobRow, gated_ns), HERALD_FIELD(JobRow, light_ns),
    HERALD_FIELD(JobRow, longest_op_ns), HERALD_FIELD(JobRow, throttle_ns),
    HERALD_FIELD(JobRow, armed), HERALD_FIELD(JobRow, sampled_ns), HERALD_FIELD(JobRow, covered_ns),
    HERALD_FIELD(JobRow, ttft_slo_ns), HERALD_FIELD(JobRow, tpot_slo_ns), HERALD_FIELD(JobRow, weight_ppm),
    HERALD_FIELD(JobRow, floor_ppm), HERALD_FIELD(JobRow, slice_ns), HERALD_FIELD(JobRow, sm_count),
    HERALD_FIELD(JobRow, infeasible), HERALD_FIELD(JobRow, needed_ns), HERALD_FIELD(JobRow, rate_ppm), HERALD_FIELD(JobRow, ahead_ns), HERALD_FIELD(JobRow, busy_ns),
    HERALD_FIELD(JobRow, busy_open_ns), HERALD_FIELD(JobRow, solo_requests), HERALD_FIELD(JobRow, solo_ns),
    HERALD_FIELD(JobRow, beside_requests), HERALD_FIELD(JobRow, beside_ns),
    HERALD_FIELD(JobRow, alone_ns), HERALD_FIELD(JobRow, missed_anyway), HERALD_FIELD(JobRow, tokens),
    HERALD_FIELD(JobRow, queued), HERALD_FIELD(JobRow, engine), HERALD_FIELD(JobRow, sm_total),
    HERALD_FIELD(JobRow, sm_granted), HERALD_FIELD(JobRow, sm_switches), HERALD_FIELD(JobRow, sm_switch_ns),
    HERALD_FIELD(JobRow, train_steps), HERALD_FIELD(JobRow, latency), HERALD_FIELD(JobRow, service),
    HERALD_FIELD(JobRow, ttft), HERALD_FIELD(JobRow, tpot),
};

// The lowest bit that no live high-priority job of the device owns, or -1.
int free_bit(const TableView& table, uint32_t device) {
  uint32_t used = 0;
  for (uint32_t i = 0; i < kMaxJobs; ++i) {
    const JobRow& job = table.row(i);
    if (job.state.load(std::memory_order_acquire) == kLive && job.priority == kHigh && job.device == device) {
      used |= 1u << job.bit;
    }
  }
  return used == ~0u ? -1 : __builtin_ctz(~used);
}

}  // namespace

#define HERALD_API __attribute__((visibility("default")))
extern "C" {

struct herald_claim {
  uint32_t priority;
  uint32_t device;
  uint32_t pid;
  uint32_t mps;
  uint32_t target_ppm;
  uint32_t weight_ppm;
  uint32_t floor_ppm;
  uint32_t reserved;
  uint64_t owner;
  int64_t slo_ns;
  int64_t ttft_slo_ns;
  int64_t tpot_slo_ns;
  char name[48];
};

// "version,rows,row_bytes;Struct.field:offset:bytes;..."
HERALD_API const char* herald_table_layout() {
  static const std::string text = [] {
    std::string out = std::to_string(kVersion) + "," + std::to_string(kMaxJobs) + "," +
                      std::to_string(sizeof(JobRow)) + "," + std::to_string(kGateStride) + "," +
                      std::to_string(kNumClasses) + "," + std::to_string(kMaxDevices);
    for (const Field& f : kFields) {
      out += ";" + std::string(f.name) + ":" + std::to_string(f.offset) + ":" + std::to_string(f.bytes);
    }
    return out;
  }();
  return text.c_str();
}

HERALD_API uint64_t herald_table_bytes(uint64_t page) { return TableView::total_bytes(page); }
HERALD_API void herald_table_initialise(void* base, uint64_t page, uint64_t epoch_ns) {
  TableView(base).initialise(page, epoch_ns);
}

HERALD_API int herald_lock(int fd, int byte, int wait) { return lock_byte(fd, byte, wait != 0); }
HERALD_API int herald_lock_held(int fd, int byte) { return byte_is_held(fd, byte); }
HERALD_API void herald_unlock(int fd, int byte) { unlock_byte(fd, byte); }

HERALD_API uint32_t herald_load32(const void* p) { return static_cast<const a32*>(p)->load(std::memory_order_acquire); }
HERALD_API void herald_store32(void* p, uint32_t v) { static_cast<a32*>(p)->store(v, std::memory_order_release); }
HERALD_API uint64_t herald_load64(const void* p) { return static_cast<const a64*>(p)->load(std::memory_order_acquire); }
HERALD_API void herald_store64(void* p, uint64_t v) { static_cast<a64*>(p)->store(v, std::memory_order_release); }

// Slot of a device in the directory, added if new; -1 when the directory is full. Under the membership lock.
HERALD_API int herald_table_device(void* base, const char* name) {
  Header& h = TableView(base).header();
  for (uint32_t i = 0; i < kMaxDevices; ++i) {
    if (h.devices[i][0] == '\0') std::snprintf(h.devices[i], sizeof h.devices[i], "%s", name);
    if (std::strncmp(h.devices[i], name, sizeof h.devices[i] - 1) == 0) return static_cast<int>(i);
  }
  return -1;
}

// Claims a row; under the membership lock. Returns its index, -1 when every row is taken, -2 when the device has its
// 32 high-priority jobs. `lock_fd` < 0: no liveness (tests).
HERALD_API int herald_table_claim(void* base, int lock_fd, const herald_claim* claim) {
  TableView table(base);
  const int64_t now = now_ns();
  table.reap(lock_fd, claim->owner, now);
  int bit = 0;
  if (claim->priority == kHigh && (bit = free_bit(table, claim->device)) < 0) return -2;
  for (uint32_t i = 0; i < kMaxJobs; ++i) {
    JobRow& job = table.row(i);
    if (job.state.load(std::memory_order_acquire) != kFree) continue;
    if (lock_fd >= 0 && !lock_byte(lock_fd, kFirstJobByte + i, false)) continue;
    const uint32_t generation = job.generation.load(std::memory_order_relaxed) + 1;
    std::memset(static_cast<void*>(&job), 0, sizeof job);
    job.generation.store(generation, std::memory_order_relaxed);
    job.priority = claim->priority;
    job.device = claim->device;
    job.pid = claim->pid;
    job.bit = static_cast<uint32_t>(bit);
    job.mps = claim->mps;
    job.target_ppm = claim->target_ppm;
    job.owner = claim->owner;
    job.slo_ns = claim->slo_ns;
    job.ttft_slo_ns = claim->ttft_slo_ns;
    job.tpot_slo_ns = claim->tpot_slo_ns;
    job.weight_ppm = claim->weight_ppm;
    job.floor_ppm = claim->floor_ppm;
    job.attached_ns = static_cast<uint64_t>(now);
    std::memcpy(job.name, claim->name, sizeof job.name);
    job.name[sizeof job.name - 1] = '\0';
    job.lead_ns.store(kLeadAlways, std::memory_order_relaxed);
    job.queue_limit.store(UINT32_MAX, std::memory_order_relaxed);
    job.remaining_ns.store(-1, std::memory_order_relaxed);
    job.alone_ns.store(-1, std::memory_order_relaxed);
    job.oldest_deadline_ns.store(kNoDeadline, std::memory_order_relaxed);
    job.heartbeat_ns.store(static_cast<uint64_t>(now), std::memory_order_relaxed);
    if (claim->priority == kHigh) table.attached(job.device).fetch_or(1u << bit, std::memory_order_seq_cst);
    job.state.store(kLive, std::memory_order_release);
    // Once more: this process's own agent may have been looking at the row's former owner, and let go of the lock.
    if (lock_fd >= 0) lock_byte(lock_fd, kFirstJobByte + i, false);
    return static_cast<int>(i);
  }
  return -1;
}

HERALD_API void herald_table_release(void* base, int lock_fd, int row) {
  TableView(base).free_row(static_cast<uint32_t>(row));
  if (lock_fd >= 0) unlock_byte(lock_fd, kFirstJobByte + row);
}

HERALD_API uint64_t herald_table_reap(void* base, int lock_fd, uint64_t self, int64_t now) {
  return TableView(base).reap(lock_fd, self, now);
}

HERALD_API void herald_gate_close(void* base, uint32_t device, uint32_t bit, int64_t now) {
  TableView(base).close_gate(device, bit, now);
}
HERALD_API void herald_gate_open(void* base, uint32_t device, uint32_t bit) { TableView(base).open_gate(device, bit); }

// 1 when the gate opened within the timeout.
HERALD_API int herald_gate_wait(void* base, uint32_t device, int64_t timeout_ns) {
  a32& word = TableView(base).gate(device, kClassHeavy);
  const int64_t end = now_ns() + timeout_ns;
  while (const uint32_t closed = word.load(std::memory_order_acquire)) {
    const int64_t left = end - now_ns();
    if (left <= 0) return 0;
    const timespec nap{left / 1'000'000'000, left % 1'000'000'000};
    futex(&word, FUTEX_WAIT, closed, &nap);
  }
  return 1;
}

// A plan for the row, if it is still of that generation (a stale plan on a new job would last one daemon tick).
HERALD_API void herald_table_plan(void* base, int row, uint32_t generation, int64_t lead_ns, uint32_t queue_limit,
                                  int64_t margin_ns, uint32_t inflation_ppm, uint32_t quantile_ppm,
                                  int64_t slice_ns) {
  JobRow& job = TableView(base).row(static_cast<uint32_t>(row));
  if (job.generation.load(std::memory_order_acquire) != generation) return;
  job.queue_limit.store(queue_limit, std::memory_order_relaxed);
  job.margin_ns.store(margin_ns, std::memory_order_relaxed);
  job.inflation_ppm.store(inflation_ppm, std::memory_order_relaxed);
  job.quantile_ppm.store(quantile_ppm, std::memory_order_relaxed);
  job.slice_ns.store(slice_ns, std::memory_order_relaxed);
  job.lead_ns.store(lead_ns, std::memory_order_release);
}

// Whether the SLO of that job can be held at all.
HERALD_API void herald_table_feasibility(void* base, int row, uint32_t generation, uint32_t reason, int64_t needed_ns) {
  JobRow& job = TableView(base).row(static_cast<uint32_t>(row));
  if (job.generation.load(std::memory_order_acquire) != generation) return;
  job.needed_ns.store(needed_ns, std::memory_order_relaxed);
  job.infeasible.store(reason, std::memory_order_release);
}

// A plan for a low-priority job.
HERALD_API void herald_table_trainer_plan(void* base, int row, uint32_t generation, uint32_t sm_count,
                                          uint32_t rate_ppm, int64_t ahead_ns) {
  JobRow& job = TableView(base).row(static_cast<uint32_t>(row));
  if (job.generation.load(std::memory_order_acquire) != generation) return;
  job.sm_count.store(sm_count, std::memory_order_relaxed);
  job.rate_ppm.store(rate_ppm, std::memory_order_relaxed);
  job.ahead_ns.store(ahead_ns, std::memory_order_release);
}

HERALD_API int64_t herald_lead(int64_t margin_ns, int64_t remaining_ns, uint32_t inflation_ppm) {
  return lead_from_progress(margin_ns, remaining_ns, inflation_ppm);
}

HERALD_API uint32_t herald_bucket(int64_t ns) { return bucket_of(ns); }

}  // extern "C"
