# Runs a compiler and keeps what it prints, which the build's log may hide:
#   cmake -DREPORT=FILE -P keep_report.cmake -- COMPILER ARGUMENTS...
set(command)
set(is_command FALSE)
math(EXPR last "${CMAKE_ARGC} - 1")
foreach(i RANGE ${last})
  if(is_command)
    string(REPLACE ";" "\\;" argument "${CMAKE_ARGV${i}}")
    list(APPEND command "${argument}")
  elseif(CMAKE_ARGV${i} STREQUAL "--")
    set(is_command TRUE)
  endif()
endforeach()

execute_process(COMMAND ${command} RESULT_VARIABLE result OUTPUT_VARIABLE report ERROR_VARIABLE report)
file(WRITE "${REPORT}" "${report}")
message(NOTICE "${report}")
if(NOT result EQUAL 0)
  message(FATAL_ERROR "the CUDA compiler failed (${result}). If it says that registers are spilled or local memory is used: a kernel "
                      "needs fewer registers, or -DDISPOSE_RT_ALLOW_SPILLS=ON accepts it. Its output is also in ${REPORT}.")
endif()
