// What the two halves of the hook library share: ophook.cpp sees torch and the ops, jobs.cpp the jobs of this process.
// They are compiled apart because torch's headers take most of the build.
#pragma once

#include <atomic>

#include "costs.hpp"
#include "gate.hpp"

namespace herald {

// The gate of this process's low-priority job; null: the hook lets everything through. Set by jobs.cpp.
extern std::atomic<Gate*> g_gate;
extern Costs* g_costs;
// From 1; counts up when the last high-priority job of the process detaches. Set by jobs.cpp.
extern std::atomic<uint32_t> g_serving_era;

void install_once();  // what happens in a forked child; before anything is attached or recorded

const CudaDriver& cuda_driver();  // valid once a CUDA job is attached
const CudaDriver* ready_cuda_driver(int index, std::string* error);  // loaded, for that device; or null

// In ophook.cpp: the RecordFunction callbacks, and what they keep per thread.
void enable_callbacks();
void disable_callbacks();
// Between the two: turns the gate's callback on or off. Off, an op costs nothing; refused (false) while ops are learnt.
bool arm_callbacks(bool armed);
void mark_serving_thread();  // this thread began a request: it is never gated
void reset_hook_in_child();

}  // namespace herald
