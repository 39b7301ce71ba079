// libtorch's CUDA graphs as functions of C: what `tch` leaves out. scripts/libtorch.py --cuda compiles this file beside
// libtorch's CUDA part, and src/model/cuda/graph.rs loads the result at run time.
//
// Each function returns null, or why it could not be done: a string that is valid until the thread's next call. No exception
// leaves this file, since Rust could not catch it.

#include <ATen/cuda/CUDAGraph.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <exception>
#include <memory>
#include <string>

namespace {

thread_local std::string said;

// What `work` throws, as a string.
template <typename Work>
const char* caught(Work work) {
  try {
    work();
    return nullptr;
  } catch (const c10::Error& error) {
    said = error.what_without_backtrace();
  } catch (const std::exception& error) {
    said = error.what();
  } catch (...) {
    said = "an exception of a kind that is not known here";
  }
  return said.c_str();
}

c10::Device cuda(int index) {
  return c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
}

// A graph, and its share of libtorch's memory: what was allocated while it was recorded lies there, at the same addresses
// for every replay.
struct Recording {
  explicit Recording(int device) : device(device), pool(at::cuda::graph_pool_handle()) {}

  ~Recording() {
    if (begun) {
      // The recording broke off. The stream must not stay in it, nor the allocator.
      if (caught([&] { graph.capture_end(); }) != nullptr) {
        caught([&] { c10::cuda::CUDACachingAllocator::endAllocateToPool(cuda(device).index(), pool); });
      }
      // Not every such error is for ever, but each is reported by the next call if nobody asks.
      (void)cudaGetLastError();
    } else {
      // Its last replay may be under way.
      (void)cudaDeviceSynchronize();
    }
  }

  int device;
  at::cuda::MempoolId_t pool;
  at::cuda::CUDAGraph graph;
  bool begun = false;
};

}  // namespace

extern "C" {

// From now on this thread queues its work on `device` on a stream of its own, behind all that was queued so far: on the
// default stream nothing can be recorded.
const char* lemniscate_leave_default_stream(int device) {
  return caught([&] {
    const c10::DeviceGuard guard(cuda(device));
    const auto before = c10::cuda::getCurrentCUDAStream();
    if (before != c10::cuda::getDefaultCUDAStream()) {
      return;
    }
    // Waited for, once, so that memory of the default stream can be given back: no other stream could have it.
    before.synchronize();
    c10::cuda::CUDACachingAllocator::emptyCache();
    c10::cuda::setCurrentCUDAStream(c10::cuda::getStreamFromPool());
  });
}

// The stream on which this thread queues its work on `device`.
const char* lemniscate_current_stream(int device, void** stream) {
  return caught([&] { *stream = c10::cuda::getCurrentCUDAStream(cuda(device).index()).stream(); });
}

// Begins to record what this thread, and libtorch's threads on its behalf, queue on `device`; nothing of it is done. The
// recording is to be freed, whatever becomes of it.
const char* lemniscate_graph_begin(int device, void** recording) {
  return caught([&] {
    const c10::DeviceGuard guard(cuda(device));
    // What earlier steps left in the allocator's cache is of no use to the graph, which allocates from a pool of its own.
    c10::cuda::getCurrentCUDAStream().synchronize();
    c10::cuda::CUDACachingAllocator::emptyCache();
    auto made = std::make_unique<Recording>(device);
    made->graph.capture_begin(made->pool);
    made->begun = true;
    *recording = made.release();
  });
}

// Ends the recording and makes it ready to be replayed.
const char* lemniscate_graph_end(void* recording) {
  auto* made = static_cast<Recording*>(recording);
  return caught([&] {
    const c10::DeviceGuard guard(cuda(made->device));
    made->graph.capture_end();
    made->begun = false;
  });
}

// Queues all that was recorded.
const char* lemniscate_graph_replay(void* recording) {
  auto* made = static_cast<Recording*>(recording);
  return caught([&] {
    const c10::DeviceGuard guard(cuda(made->device));
    made->graph.replay();
  });
}

// Forgets a recording, finished or not.
void lemniscate_graph_free(void* recording) {
  auto* made = static_cast<Recording*>(recording);
  caught([&] {
    const c10::DeviceGuard guard(cuda(made->device));
    delete made;
  });
}

}  // extern "C"
