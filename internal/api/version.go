package api

// Level is the version of this API. A client refuses a daemon of another one.
const Level = 3

// BuildVersion is the version of the binary, set by the linker.
var BuildVersion = "unknown"
