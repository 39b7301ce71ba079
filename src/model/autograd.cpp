// Gradients computed in Rust as nodes of libtorch's graph: what `tch` leaves out. build.rs compiles this file, and
// src/model/autograd.rs is its other side.

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/variable.h>

#include <memory>
#include <stdexcept>
#include <vector>

namespace {

using torch::autograd::variable_list;

// Fills `gradients`, one for each input that is `wanted`, with tensors that the caller deletes. False: it panicked.
using Backward = bool (*)(void* state, at::Tensor* gradient, const bool* wanted, at::Tensor** gradients);
using Release = void (*)(void* state);

struct ComputedInRust : torch::autograd::Node {
  ComputedInRust(void* state, Backward backward, Release release) : state(state), backward(backward), release(release) {}

  ~ComputedInRust() override {
    release_variables();
  }

  variable_list apply(variable_list&& arriving) override {
    if (state == nullptr) {
      throw std::runtime_error("the graph was used up by an earlier backward pass");
    }
    const size_t inputs = num_outputs();
    variable_list leaving(inputs);
    if (!arriving.at(0).defined()) {
      return leaving;
    }
    const auto wanted = std::make_unique<bool[]>(inputs);
    for (size_t i = 0; i < inputs; ++i) {
      wanted[i] = task_should_compute_output(i);
    }
    std::vector<at::Tensor*> gradients(inputs, nullptr);
    const bool done = backward(state, &arriving[0], wanted.get(), gradients.data());
    for (size_t i = 0; i < inputs; ++i) {
      if (gradients[i] != nullptr) {
        leaving[i] = std::move(*gradients[i]);
        delete gradients[i];
      }
    }
    if (!done) {
      throw std::runtime_error("a gradient that is computed in Rust panicked");
    }
    return leaving;
  }

  void release_variables() override {
    if (state != nullptr) {
      release(state);
      state = nullptr;
    }
  }

  void* state;
  Backward backward;
  Release release;
};

}  // namespace

extern "C" {

// Makes `output` the result of a function of `inputs` whose gradient is `backward`; does nothing but release `state` where
// no gradient is asked for. Takes `state` over in either case.
void lemniscate_attach(at::Tensor* output, at::Tensor* const* inputs, size_t count, void* state, Backward backward,
                       Release release) {
  auto node = std::shared_ptr<ComputedInRust>(new ComputedInRust(state, backward, release),
                                              torch::autograd::deleteNode);
  variable_list arguments;
  for (size_t i = 0; i < count; ++i) {
    arguments.push_back(*inputs[i]);
  }
  if (torch::autograd::compute_requires_grad(arguments)) {
    node->set_next_edges(torch::autograd::collect_next_edges(arguments));
    torch::autograd::set_history(*output, node);
  }
}

}  // extern "C"
