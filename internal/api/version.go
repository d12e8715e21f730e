package api

// BuildVersion is the version of the program, set by the linker (see the
// Makefile); both programs of one build carry the same.
var BuildVersion = "devel"

// Level is the version of the API that this package describes. It grows with
// every change that an older client or daemon would misunderstand.
const Level = 1
