# SPDX-License-Identifier: Apache-2.0
# The CUDA kernels: built where nvcc is found, and never needed. Sets DYNKERN_CUDA_BINDINGS and DYNKERN_CUDA_LIBRARY.
set(DYNKERN_CUDA AUTO CACHE STRING "Build the CUDA kernels: AUTO (where nvcc works), ON (fail without it) or OFF")
set_property(CACHE DYNKERN_CUDA PROPERTY STRINGS AUTO ON OFF)
# Machine code for 8.x, Hopper and both Blackwells, and PTX that the driver compiles for anything else from 9.0 on. Three
# seconds of one core per architecture and file; "90a-real" alone builds fastest for an H200.
set(DYNKERN_CUDA_ARCHITECTURES "80-real;90a-real;100-real;120-real;90-virtual" CACHE STRING
  "What the CUDA kernels are compiled for")

set(DYNKERN_CUDA_BINDINGS)
set(DYNKERN_CUDA_LIBRARY)
if(NOT DYNKERN_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "DYNKERN_CUDA: expected AUTO, ON or OFF, got ${DYNKERN_CUDA}")
endif()
if(DYNKERN_CUDA STREQUAL "OFF")
  return()
endif()
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES ${DYNKERN_CUDA_ARCHITECTURES})
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(DYNKERN_CUDA STREQUAL "ON")
    message(FATAL_ERROR "DYNKERN_CUDA is ON, but there is no nvcc that works with the C++ compiler (CUDACXX names one)")
  endif()
  message(STATUS "dynkern: no nvcc, so no CUDA kernels")
  return()
endif()
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
  if(DYNKERN_CUDA STREQUAL "ON")
    message(FATAL_ERROR "DYNKERN_CUDA is ON, but nvcc is ${CMAKE_CUDA_COMPILER_VERSION}; 12.8 or later is needed")
  endif()
  message(STATUS "dynkern: nvcc is ${CMAKE_CUDA_COMPILER_VERSION}, 12.8 or later is needed, so no CUDA kernels")
  return()
endif()
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)

# One file per type of activations, so that they compile side by side.
add_library(dynkern_cuda STATIC csrc/cuda/pack.cpp csrc/cuda/ternary_linear.cu csrc/cuda/ternary_linear_int8.cu
  csrc/cuda/ternary_linear_bfloat16.cu csrc/cuda/ternary_linear_float16.cu)
target_include_directories(dynkern_cuda PUBLIC csrc)
target_compile_options(dynkern_cuda PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -fvisibility=hidden>
  $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-fvisibility=hidden>)
set(DYNKERN_CUDA_LIBRARY dynkern_cuda)
set(DYNKERN_CUDA_BINDINGS csrc/cuda/bindings.cpp)
list(JOIN CMAKE_CUDA_ARCHITECTURES " " architectures)
set_source_files_properties(csrc/bindings.cpp csrc/cuda/bindings.cpp PROPERTIES
  COMPILE_DEFINITIONS "DYNKERN_CUDA=\"${architectures}\"")
message(STATUS "dynkern: CUDA kernels for ${architectures}")
