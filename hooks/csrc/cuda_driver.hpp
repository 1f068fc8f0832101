// The few CUDA driver calls that the gate needs, found at run time: one source serves CPU-only and CUDA machines.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <string>

namespace herald {

using CudaStream = void*;
using CudaEvent = void*;

// cuda.h, by value: stable parts of the driver's ABI.
constexpr unsigned kWaitValueEq = 1;          // CU_STREAM_WAIT_VALUE_EQ
constexpr unsigned kHostRegisterPortable = 1;  // CU_MEMHOSTREGISTER_PORTABLE
constexpr unsigned kHostRegisterMapped = 2;    // CU_MEMHOSTREGISTER_DEVICEMAP
constexpr int kAlreadyRegistered = 712;        // CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED
constexpr int kCaptureRelaxed = 2;             // CU_STREAM_CAPTURE_MODE_RELAXED

class CudaDriver {
 public:
  int (*wait_value)(CudaStream, uint64_t, uint32_t, unsigned) = nullptr;
  int (*write_value)(CudaStream, uint64_t, uint32_t, unsigned) = nullptr;
  int (*capture_info)(CudaStream, int*, uint64_t*, void**, void**, size_t*) = nullptr;
  int (*exchange_capture_mode)(int*) = nullptr;
  int (*event_create)(CudaEvent*, unsigned) = nullptr;
  int (*event_record)(CudaEvent, CudaStream) = nullptr;
  int (*event_query)(CudaEvent) = nullptr;
  int (*event_elapsed)(float*, CudaEvent, CudaEvent) = nullptr;
  int (*host_register)(void*, size_t, unsigned) = nullptr;
  int (*host_device_pointer)(uint64_t*, void*, unsigned) = nullptr;
  int (*error_name)(int, const char**) = nullptr;
  int (*device_get)(int*, int) = nullptr;
  int (*primary_context)(void**, int) = nullptr;
  int (*context_current)(void**) = nullptr;
  int (*context_push)(void*) = nullptr;
  int (*context_pop)(void**) = nullptr;
  int (*torch_current_stream)(int32_t, void**) = nullptr;

  // Finds everything, or says what is missing.
  bool load(std::string* error) {
    void* cuda = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    if (!cuda) return fail(error, "libcuda.so.1 (the NVIDIA driver) does not load");
    void* torch = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
    if (!torch) return fail(error, "libtorch_cuda.so is not loaded: this torch is built without CUDA");
    return find(cuda, "cuStreamWaitValue32_v2", &wait_value, error) &&
           find(cuda, "cuStreamWriteValue32_v2", &write_value, error) &&
           find(cuda, "cuStreamGetCaptureInfo_v2", &capture_info, error) &&
           find(cuda, "cuDeviceGet", &device_get, error) &&
           find(cuda, "cuDevicePrimaryCtxRetain", &primary_context, error) &&
           find(cuda, "cuCtxGetCurrent", &context_current, error) &&
           find(cuda, "cuCtxPushCurrent_v2", &context_push, error) &&
           find(cuda, "cuCtxPopCurrent_v2", &context_pop, error) &&
           find(cuda, "cuThreadExchangeStreamCaptureMode", &exchange_capture_mode, error) &&
           find(cuda, "cuEventCreate", &event_create, error) && find(cuda, "cuEventRecord", &event_record, error) &&
           find(cuda, "cuEventQuery", &event_query, error) &&
           find(cuda, "cuEventElapsedTime", &event_elapsed, error) &&
           find(cuda, "cuMemHostRegister_v2", &host_register, error) &&
           find(cuda, "cuMemHostGetDevicePointer_v2", &host_device_pointer, error) &&
           find(cuda, "cuGetErrorName", &error_name, error) &&
           find(torch, "aoti_torch_get_current_cuda_stream", &torch_current_stream, error);
  }

  // Maps host memory into the address space of every context; a range that is registered already is fine.
  bool map_host(void* host, size_t bytes, uint64_t* device_address, std::string* error) const {
    int rc = host_register(host, bytes, kHostRegisterPortable | kHostRegisterMapped);
    if (rc != 0 && rc != kAlreadyRegistered) return fail(error, "cuMemHostRegister", rc);
    rc = host_device_pointer(device_address, host, 0);
    return rc == 0 || fail(error, "cuMemHostGetDevicePointer", rc);
  }

  CudaStream current_stream(int device) const {
    void* stream = nullptr;
    torch_current_stream(device, &stream);
    return stream;
  }

  // The id of the graph that the stream is being captured into; 0 when it is not.
  uint64_t capture_id(CudaStream stream) const {
    int status = 0;
    uint64_t id = 0;
    // An error here means that another stream captures and forbids the question on the legacy stream.
    if (capture_info(stream, &status, &id, nullptr, nullptr, nullptr) != 0) return UINT64_MAX;
    return status == 0 ? 0 : id;
  }

  // Makes device `index` usable by InContext. The primary context, torch's, is kept until the process ends.
  bool retain_context(int index, std::string* error) {
    if (index < 0 || index >= kMostDevices) return fail(error, "more than 16 GPUs are visible");
    if (contexts_[index]) return true;
    int device = 0;
    int rc = device_get(&device, index);
    if (rc == 0) rc = primary_context(&contexts_[index], device);
    return rc == 0 || fail(error, "cuDevicePrimaryCtxRetain", rc);
  }

  // torch's default stream is the null stream, which means that of the thread's current context: an op's device may
  // not be current yet, and a thread that never used CUDA has none.
  class InContext {
   public:
    InContext(const CudaDriver& driver, int index) : driver_(driver) {
      void* current = nullptr;
      driver_.context_current(&current);
      void* wanted = index >= 0 && index < kMostDevices ? driver_.contexts_[index] : nullptr;
      pushed_ = wanted && current != wanted && driver_.context_push(wanted) == 0;
    }
    ~InContext() {
      void* popped = nullptr;
      if (pushed_) driver_.context_pop(&popped);
    }
    InContext(const InContext&) = delete;
    InContext& operator=(const InContext&) = delete;

   private:
    const CudaDriver& driver_;
    bool pushed_;
  };

  // Event calls that must not break somebody's graph capture in global mode.
  class RelaxedCapture {
   public:
    explicit RelaxedCapture(const CudaDriver& driver) : driver_(driver) { driver_.exchange_capture_mode(&mode_); }
    ~RelaxedCapture() { driver_.exchange_capture_mode(&mode_); }
    RelaxedCapture(const RelaxedCapture&) = delete;
    RelaxedCapture& operator=(const RelaxedCapture&) = delete;

   private:
    const CudaDriver& driver_;
    int mode_ = kCaptureRelaxed;
  };

 private:
  static constexpr int kMostDevices = 16;
  void* contexts_[kMostDevices] = {};

  template <typename F>
  static bool find(void* library, const char* symbol, F* out, std::string* error) {
    *out = reinterpret_cast<F>(dlsym(library, symbol));
    return *out || fail(error, std::string("the symbol ") + symbol + " is missing");
  }

  static bool fail(std::string* error, const std::string& what) {
    *error = what;
    return false;
  }

  bool fail(std::string* error, const char* call, int rc) const {
    const char* name = nullptr;
    error_name(rc, &name);
    *error = std::string(call) + " failed: " + (name ? name : "unknown error") + " (" + std::to_string(rc) + ")";
    return false;
  }
};

}  // namespace herald
