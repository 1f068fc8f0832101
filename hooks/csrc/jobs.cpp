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

// The request that this thread's forward works for.
struct AtWork {
  int handle = 0;
  int64_t id = -1;
};
thread_local AtWork t_at_work;

void end(int handle, int64_t id, int64_t tokens) {
  Process& p = process();
  const auto job = high_job(p, handle);
  const int64_t alarm = job ? job->end(id, job->cuda_index() >= 0 ? &p.cuda : nullptr, tokens) : HighJob::kNever;
  if (alarm != HighJob::kNever) p.agent.wake(alarm);
}

void mark(int handle, int64_t id, uint32_t checkpoint) {
  if (id < 0) return;
  Process& p = process();
  const auto job = high_job(p, handle);
  if (!job) return;
  const int64_t alarm = job->mark(id, checkpoint, job->cuda_index() >= 0 ? &p.cuda : nullptr);
  if (alarm != HighJob::kNever) p.agent.wake(alarm);
}

}  // namespace

void install_once() {
  static const bool installed = pthread_atfork(nullptr, nullptr, after_fork_in_child) == 0;
  (void)installed;
}

const CudaDriver& cuda_driver() { return process().cuda; }

const CudaDriver* ready_cuda_driver(int index, std::string* error) {
  Process& p = process();
  Guard setup(p.setup);
  return cuda_ready(p, error) && p.cuda.retain_context(index, error) ? &p.cuda : nullptr;
}

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
    if (cuda_ready(p, &why) && p.cuda.retain_context(cuda_index, &why)) {
      words = pinned_words(p.cuda, HighJob::kNumWords * sizeof(a32), &words_device, &why);
    }
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

// Returns the request's id, or -1 when it runs untracked. Checkpoints on this thread are its own. SLOs: 0 is none.
HERALD_API int64_t herald_request_begin(int handle, int64_t arrival_ns, int64_t latency_ns, int64_t ttft_ns,
                                        int64_t tpot_ns) {
  Process& p = process();
  const auto job = high_job(p, handle);
  if (!job) return -1;
  mark_serving_thread();
  int64_t alarm = 0;
  const int64_t id = job->begin(arrival_ns, {latency_ns, ttft_ns, tpot_ns}, &alarm);
  if (alarm != HighJob::kNever) p.agent.wake(alarm);
  t_at_work = {handle, id};
  return id;
}

// `tokens`: made by the request, -1 where that is not told.
HERALD_API void herald_request_end(int handle, int64_t id, int64_t tokens) {
  if (t_at_work.id == id) t_at_work = {};
  end(handle, id, tokens);
}

// The request's first token is in the host's hands.
HERALD_API void herald_first_token(int handle, int64_t id) {
  Process& p = process();
  const auto job = high_job(p, handle);
  const int64_t alarm = job ? job->first_token(id) : HighJob::kNever;
  if (alarm != HighJob::kNever) p.agent.wake(alarm);
}

HERALD_API void herald_queued(int handle, uint32_t count) {
  Process& p = process();
  const auto job = high_job(p, handle);
  const int64_t alarm = job ? job->set_queued(count) : HighJob::kNever;
  if (alarm != HighJob::kNever) p.agent.wake(alarm);
}

// One iteration of an engine begins on this thread. `kind` as WorkKind; `due_ns` 0: by when its requests need it.
// Returns its id, or -1 when it runs untracked.
HERALD_API int64_t herald_step_begin(int handle, uint32_t kind, int64_t due_ns) {
  Process& p = process();
  const auto job = high_job(p, handle);
  if (!job) return -1;
  mark_serving_thread();
  int64_t alarm = 0;
  const int64_t id = job->begin_step(kind == kPrefill ? kPrefill : kDecode, due_ns, &alarm);
  if (alarm != HighJob::kNever) p.agent.wake(alarm);
  return id;
}

// Its work is enqueued on this thread's current stream (CUDA) or done (CPU).
HERALD_API void herald_step_end(int handle, int64_t id) { end(handle, id, -1); }

// The arithmetic of the closing rule by itself, for tests and simulations: the earliest time that any request of a
// queue closes the gate. INT64_MAX as a deadline: none.
HERALD_API int64_t herald_close_at(uint32_t num, const int64_t* deadlines_ns, const int64_t* remaining_ns,
                                   int64_t margin_ns, uint32_t inflation_ppm, int64_t ahead_ns) {
  return close_at_ns(num, deadlines_ns, remaining_ns, margin_ns, inflation_ppm, ahead_ns);
}

// One step of the request is enqueued on the current stream (CUDA) or done (CPU).
HERALD_API void herald_request_step(int handle, int64_t id) { mark(handle, id, 0); }

// An outermost forward within an explicit request begins and ends on this thread: a step of the request it works for.
HERALD_API void herald_forward_begin(int handle) {
  mark_serving_thread();  // also where the request was begun by another thread
  const auto job = high_job(process(), handle);
  t_at_work = {handle, job ? job->at_work() : -1};
}

HERALD_API void herald_forward_end(int handle) {
  const int64_t id = t_at_work.handle == handle ? t_at_work.id : -1;
  t_at_work = {};
  mark(handle, id, 0);
}

// The forward on this thread has passed checkpoint 1..7.
HERALD_API void herald_checkpoint(int handle, uint32_t checkpoint) {
  if (checkpoint > 0 && t_at_work.handle == handle) mark(handle, t_at_work.id, checkpoint);
}

HERALD_API void herald_checkpoints_changed(int handle) {
  const auto job = high_job(process(), handle);
  if (job) job->with_progress([](JobProgress& progress) { progress.forget_checkpoints(); });
}

// Look at the progress of every request on a GPU, whatever the plan.
HERALD_API void herald_observe(int handle, int on) {
  const auto job = high_job(process(), handle);
  if (job) job->with_progress([on](JobProgress& progress) { progress.observe(on != 0); });
}

// The model of progress by itself, for tests and simulations. `positions` as in progress.hpp.
HERALD_API void* herald_progress_new() { return new ProgressModel; }
HERALD_API void herald_progress_free(void* model) { delete static_cast<ProgressModel*>(model); }

HERALD_API int64_t herald_progress_learn(void* model, uint32_t num, const int64_t* at_ns, const uint32_t* positions,
                                         int64_t begin_ns, int64_t end_ns, uint32_t steps,
                                         int64_t undisturbed_since_ns) {
  Trace trace;
  trace.start();
  for (uint32_t i = 0; i < num; ++i) trace.add(at_ns[i], positions[i]);
  return static_cast<ProgressModel*>(model)->learn(trace, {begin_ns, end_ns, steps, undisturbed_since_ns});
}

HERALD_API int64_t herald_progress_bound(const void* model, uint32_t position, uint32_t ppm) {
  return static_cast<const ProgressModel*>(model)->bound_ns(position, ppm);
}

HERALD_API int64_t herald_progress_expected(const void* model, uint32_t position, int64_t since_ns, int undisturbed) {
  return static_cast<const ProgressModel*>(model)->expected_ns(position, since_ns, undisturbed != 0);
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
  enable_callbacks();
  p.agent.set_gate(gate.get());
  g_gate.store(gate.release(), std::memory_order_release);
  return 1;
}

HERALD_API void herald_low_detach() {
  Gate* gate = g_gate.exchange(nullptr, std::memory_order_acq_rel);
  if (!gate) return;
  process().agent.set_gate(nullptr);
  disable_callbacks();
  gate->stop();
}

// A graph is captured between the two: it gets its waits also where nobody could close the gate yet. Returns whether
// there is a gate.
HERALD_API int herald_low_capture_begin() {
  Gate* gate = g_gate.load(std::memory_order_acquire);
  if (!gate) return 0;
  gate->begin_capture();
  process().agent.arm_now();
  return 1;
}

HERALD_API void herald_low_capture_end() {
  Gate* gate = g_gate.load(std::memory_order_acquire);
  if (gate) gate->end_capture();
}

// An optimizer's step is over, on the thread that took it.
HERALD_API void herald_low_step() {
  Gate* gate = g_gate.load(std::memory_order_acquire);
  if (gate) gate->standby().end_step();
}

// For tests and measurements: the hook rests while the gate is open, whoever sets the pace.
HERALD_API void herald_low_standby(int on) {
  Gate* gate = g_gate.load(std::memory_order_acquire);
  if (gate) gate->standby().force(on != 0);
}

HERALD_API void herald_costs_rule(uint32_t none_below_ns, uint32_t light_ns, uint64_t light_numel) {
  g_costs->change({none_below_ns, light_ns, light_numel});
}

HERALD_API void herald_costs_set(uint64_t key, uint32_t self_ns, uint64_t numel, uint32_t kind, const char* text) {
  g_costs->set(key, self_ns, numel, static_cast<Kind>(kind), text);
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
