// The jobs of this process and the C ABI for herald.hooks.native. Everything that lives here is leaked on purpose:
// the agent and gated threads run while the interpreter shuts down.
#include <pthread.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "agent.hpp"
#include "process.hpp"
#include "requests.hpp"

namespace herald {

std::atomic<Gate*> g_gate{nullptr};
Costs* g_costs = new Costs;
std::atomic<uint32_t> g_serving_era{1};

namespace {

struct Process {
  CudaDriver cuda;
  bool cuda_ready = false;
  Agent agent;
  Mutex setup;  // attaching: may take long in the driver
  Mutex mutex;  // `high`, for moments: requests take it
  std::vector<std::shared_ptr<HighJob>> high;  // handle - 1 is the index; null once detached
};

// Replaced by a fresh one in a forked child: its agent and its jobs live in the parent only.
std::atomic<Process*> g_process{new Process};

Process& process() { return *g_process.load(std::memory_order_acquire); }

// Locks may have been held by threads that do not exist here, so nothing of the parent's is touched, not even to
// disable the callbacks: they see that there is no gate.
void after_fork_in_child() {
  g_gate.store(nullptr, std::memory_order_release);
  g_process.store(new Process, std::memory_order_release);
  g_costs = new Costs;
  reset_hook_in_child();
}

void install_once() {
  static const bool installed = pthread_atfork(nullptr, nullptr, after_fork_in_child) == 0;
  (void)installed;
}

void copy_error(const std::string& text, char* out, size_t size) { std::snprintf(out, size, "%s", text.c_str()); }

bool cuda_ready(Process& p, std::string* error) {
  return p.cuda_ready || (p.cuda_ready = p.cuda.load(error));
}

// Page-aligned, zeroed, mapped for CUDA, never freed.
a32* pinned_words(const CudaDriver& cuda, size_t bytes, uint64_t* device, std::string* error) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t size = (bytes + page - 1) / page * page;
  void* memory = std::aligned_alloc(page, size);
  std::memset(memory, 0, size);
  return cuda.map_host(memory, size, device, error) ? static_cast<a32*>(memory) : nullptr;
}

std::shared_ptr<HighJob> high_job(Process& p, int handle) {
  Guard guard(p.mutex);
  const auto index = static_cast<size_t>(handle) - 1;
  return index < p.high.size() ? p.high[index] : nullptr;
}

}  // namespace

const CudaDriver& cuda_driver() { return process().cuda; }

}  // namespace herald

using namespace herald;

#define HERALD_API __attribute__((visibility("default")))
extern "C" {

// What this binary was built for; the loader refuses another torch.
HERALD_API const char* herald_hook_torch() { return HERALD_TORCH; }

// Registers a high-priority job; `cuda_index` < 0 on CPU. Returns a handle, or 0 with the reason in `error`.
HERALD_API int herald_high_attach(void* base, int lock_fd, uint32_t row, uint64_t self, int cuda_index, char* error,
                                  size_t error_size) {
  install_once();
  Process& p = process();
  Guard setup(p.setup);
  a32* words = nullptr;
  uint64_t words_device = 0;
  std::string why;
  if (cuda_index >= 0) {
    if (cuda_ready(p, &why) && p.cuda.retain_context(cuda_index, &why)) words = pinned_words(p.cuda, HighJob::kMostRequests * sizeof(a32), &words_device, &why);
    if (!words) {
      copy_error(why, error, error_size);
      return 0;
    }
  }
  auto job = std::make_shared<HighJob>(TableView(base), row, cuda_index, words, words_device);
  if (!p.agent.watch_table(TableView(base), lock_fd, self)) {
    copy_error("the agent thread does not start (too many threads?)", error, error_size);
    return 0;
  }
  p.agent.add_high(job);
  Guard guard(p.mutex);
  p.high.push_back(std::move(job));
  return static_cast<int>(p.high.size());
}

HERALD_API void herald_high_detach(int handle) {
  Process& p = process();
  const auto job = high_job(p, handle);
  if (!job) return;
  job->detach();
  p.agent.remove_high(job.get());
  Guard guard(p.mutex);
  p.high[static_cast<size_t>(handle) - 1] = nullptr;
  for (const auto& other : p.high) {
    if (other) return;
  }
  g_serving_era.fetch_add(1, std::memory_order_relaxed);
}

// This thread serves requests: it is never gated while a high-priority job is attached.
HERALD_API void herald_mark_serving() { mark_serving_thread(); }

// Returns the request's slot, or -1 when it runs untracked.
HERALD_API int64_t herald_request_begin(int handle, int64_t arrival_ns, int64_t slo_ns) {
  Process& p = process();
  const auto job = high_job(p, handle);
  if (!job) return -1;
  mark_serving_thread();
  int64_t alarm = 0;
  const int64_t slot = job->begin(arrival_ns, slo_ns, &alarm);
  if (alarm != HighJob::kNever) p.agent.wake(alarm);
  return slot;
}

HERALD_API void herald_request_end(int handle, int64_t slot) {
  Process& p = process();
  const auto job = high_job(p, handle);
  if (!job) return;
  if (job->end(slot, job->cuda_index() >= 0 ? &p.cuda : nullptr)) p.agent.wake(0);
}

// Starts gating this process's ops. `slots[i]` is the table's device slot of CUDA device i (`num_cuda` of them), or
// slots[0] that of the CPU when `num_cuda` is 0. Returns 1, or 0 with the reason in `error`.
HERALD_API int herald_low_attach(void* base, int lock_fd, uint32_t row, uint64_t self, const int32_t* slots,
                                 int num_cuda, int all_heavy, char* error, size_t error_size) {
  install_once();
  Process& p = process();
  TableView table(base);
  auto gate = std::make_unique<Gate>(table, row);
  std::string why;
  Guard setup(p.setup);
  if (num_cuda > 0) {
    uint64_t gates_device = 0;
    uint64_t progress_device = 0;
    a32* progress = nullptr;
    const bool mapped = cuda_ready(p, &why) &&
                        p.cuda.map_host(table.gates(), table.header().gates_bytes, &gates_device, &why) &&
                        (progress = pinned_words(p.cuda, Gate::kProgressBytes, &progress_device, &why));
    if (!mapped) {
      copy_error(why, error, error_size);
      return 0;
    }
    gate->set_cuda(&p.cuda, progress, progress_device);
    for (int i = 0; i < num_cuda && i < static_cast<int>(Gate::kMostCudaDevices); ++i) {
      if (slots[i] < 0) continue;
      const char* word = reinterpret_cast<const char*>(&table.gate(static_cast<uint32_t>(slots[i]), kClassHeavy));
      if (!p.cuda.retain_context(i, &why)) {
        copy_error(why, error, error_size);
        return 0;
      }
      gate->set_device(i, static_cast<uint32_t>(slots[i]), gates_device + static_cast<uint64_t>(word - table.gates()));
    }
  } else {
    gate->use_host_slot(static_cast<uint32_t>(slots[0]));
  }
  gate->set_all_heavy(all_heavy != 0);
  if (!p.agent.watch_table(table, lock_fd, self)) {
    copy_error("the agent thread does not start (too many threads?)", error, error_size);
    return 0;
  }
  p.agent.add_beat(&table.row(row).heartbeat_ns);
  g_gate.store(gate.release(), std::memory_order_release);
  enable_callbacks();
  return 1;
}

HERALD_API void herald_low_detach() {
  Gate* gate = g_gate.exchange(nullptr, std::memory_order_acq_rel);
  if (!gate) return;
  disable_callbacks();
  gate->stop();
  process().agent.remove_beat(&gate->row().heartbeat_ns);
}

HERALD_API void herald_costs_rule(uint32_t none_below_ns, uint32_t light_ns, uint64_t light_numel) {
  g_costs->rule = {none_below_ns, light_ns, light_numel};
}

HERALD_API void herald_costs_set(uint64_t key, uint32_t self_ns, uint64_t numel, const char* text) {
  g_costs->set(key, self_ns, numel, text);
}

// The i-th signature seen; 0 past the last. `text` is cut at `size` bytes.
HERALD_API int herald_costs_at(uint64_t i, uint64_t* key, uint32_t* self_ns, uint32_t* samples, uint32_t* kind,
                               uint64_t* numel, char* text, size_t size) {
  std::string readable;
  const Signature* s = g_costs->at(i, &readable);
  if (!s) return 0;
  *key = s->key.load(std::memory_order_relaxed);
  *self_ns = s->self_ns.load(std::memory_order_relaxed);
  *samples = s->samples.load(std::memory_order_relaxed);
  *kind = s->kind.load(std::memory_order_relaxed);
  *numel = s->numel.load(std::memory_order_relaxed);
  copy_error(readable, text, size);
  return 1;
}

// Forgets every cost: another device, or a test.
HERALD_API void herald_costs_clear() { g_costs = new Costs; }

}  // extern "C"
