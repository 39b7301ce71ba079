// As far as it is named: see the file that is included.
#pragma once
#include "cuda_runtime_api.h"
