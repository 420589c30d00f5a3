# `cmake --install` and CPack. The relocatable tarball is laid out here (see docs/operations.md).
