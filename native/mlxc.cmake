# Included by mlx-c's project() call: adds our compatibility header to its files.
cmake_language(DEFER CALL target_compile_options mlxc PRIVATE
               "SHELL:-include \"${MLXPORT_NATIVE}/mlxc_compat.h\"")
cmake_language(DEFER CALL target_link_libraries mlxc PRIVATE
               "$<BUILD_INTERFACE:fmt::fmt-header-only>")
