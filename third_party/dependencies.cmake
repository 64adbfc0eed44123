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
  find_package(pybind11 3.0 CONFIG REQUIRED)
endif()

# CUDA: AUTO builds it only where both the compiler and a usable driver are found.
set(PAGEDCORE_HAS_CUDA OFF)
if(NOT PAGEDCORE_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER AND PAGEDCORE_CUDA STREQUAL "AUTO")
    execute_process(COMMAND nvidia-smi -L RESULT_VARIABLE _no_driver OUTPUT_QUIET ERROR_QUIET)
    if(_no_driver EQUAL 0)
      set(PAGEDCORE_HAS_CUDA ON)
    endif()
  elseif(CMAKE_CUDA_COMPILER)
    set(PAGEDCORE_HAS_CUDA ON)
  elseif(PAGEDCORE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "PAGEDCORE_CUDA=ON needs nvcc; none was found")
  endif()
endif()
if(PAGEDCORE_HAS_CUDA)
  set(CMAKE_CUDA_ARCHITECTURES "80-real;89-real;90a-real" CACHE STRING "CUDA architectures")
  enable_language(CUDA)
  find_package(CUDAToolkit 12.8 REQUIRED)
endif()
