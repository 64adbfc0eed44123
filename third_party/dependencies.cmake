# Every dependency of the build is found here, and only here. third_party/README.md says what each is for.

find_package(Threads REQUIRED)

if(PAGEDCORE_PYTHON)
  find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
  # In a plain CMake build pybind11 is the one installed beside the interpreter.
  if(NOT pybind11_DIR AND NOT SKBUILD)
    execute_process(
      COMMAND ${Python_EXECUTABLE} -m pybind11 --cmakedir
      OUTPUT_VARIABLE pybind11_DIR OUTPUT_STRIP_TRAILING_WHITESPACE)
  endif()
  # Where this is set, pybind11 does not try out the options of link-time optimisation.
  set(CMAKE_INTERPROCEDURAL_OPTIMIZATION OFF CACHE BOOL "Link-time optimisation of every target")
  find_package(pybind11 3.0 CONFIG REQUIRED)
endif()

# CUDA: AUTO builds it only where both a usable driver and the compiler are found. The driver is
# asked first: looking for the compiler takes seconds.
set(PAGEDCORE_HAS_CUDA OFF)
set(_wants_cuda ${PAGEDCORE_CUDA})
if(PAGEDCORE_CUDA STREQUAL "AUTO")
  execute_process(COMMAND nvidia-smi -L RESULT_VARIABLE _no_driver OUTPUT_QUIET ERROR_QUIET)
  string(COMPARE EQUAL "${_no_driver}" "0" _wants_cuda)
endif()
if(_wants_cuda)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(PAGEDCORE_HAS_CUDA ON)
  elseif(NOT PAGEDCORE_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "PAGEDCORE_CUDA=ON needs nvcc; none was found")
  endif()
endif()
if(PAGEDCORE_HAS_CUDA)
  set(CMAKE_CUDA_ARCHITECTURES "80-real;89-real;90a-real" CACHE STRING "CUDA architectures")
  enable_language(CUDA)
  find_package(CUDAToolkit 12.8 REQUIRED)
endif()
