# Cross-building for aarch64 on a Debian x86-64: the cross compiler of gcc-aarch64-linux-gnu, and the
# arm64 libraries that tools/aarch64-root puts in a folder, given as -DMR_SYSROOT=FOLDER. Programs and
# tests run under qemu-user.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES MR_SYSROOT)
if(NOT EXISTS "${MR_SYSROOT}/usr/lib/aarch64-linux-gnu")
    message(FATAL_ERROR "MR_SYSROOT is no folder with arm64 libraries: tools/aarch64-root makes one")
endif()
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_SYSROOT "${MR_SYSROOT}")
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L "${MR_SYSROOT}")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
set(ENV{PKG_CONFIG_SYSROOT_DIR} "${MR_SYSROOT}")
set(ENV{PKG_CONFIG_LIBDIR}
    "${MR_SYSROOT}/usr/lib/aarch64-linux-gnu/pkgconfig:${MR_SYSROOT}/usr/share/pkgconfig")
