package format

// Secrets resolves the name of a key (`--object secret,id=NAME`) to its bytes:
// a passphrase or key, as it is. It is safe for concurrent use. The error for
// a name that is not there names it.
type Secrets interface {
	Secret(id string) ([]byte, error)
}
