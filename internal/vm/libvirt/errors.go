package libvirt

import (
	"context"
	"errors"
	"fmt"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// Sentinels of this package; the wrapping error has libvirt's own words.
var (
	// ErrNotFound: no such domain, network, pool, volume, snapshot or device.
	ErrNotFound = errors.New("not found")
	// ErrExists: the name, UUID or file is taken.
	ErrExists = errors.New("exists already")
	// ErrDenied: the daemon refuses this user.
	ErrDenied = errors.New("permission denied")
	// ErrUnreachable: no daemon answers at the URI.
	ErrUnreachable = errors.New("libvirt is unreachable")
	// ErrInvalid: the state of the object does not allow the operation, such
	// as starting a domain that runs.
	ErrInvalid = errors.New("operation is not valid in this state")
	// ErrUnsupported: the daemon or the hypervisor does not know this.
	ErrUnsupported = errors.New("unsupported")
	// ErrBadXML: the document is not one that libvirt accepts.
	ErrBadXML = errors.New("libvirt does not accept the document")
	// ErrBadURI: the connection URI cannot be used.
	ErrBadURI = errors.New("connection URI")
	// ErrClosed: the connection was closed, by us or by the daemon.
	ErrClosed = errors.New("connection to libvirt is closed")
)

// sentinels says which sentinel each of libvirt's error numbers is.
func sentinel(code golibvirt.ErrorNumber) error {
	switch code {
	case golibvirt.ErrNoDomain, golibvirt.ErrNoNetwork, golibvirt.ErrNoStoragePool, golibvirt.ErrNoStorageVol,
		golibvirt.ErrNoNodeDevice, golibvirt.ErrNoDomainSnapshot, golibvirt.ErrDeviceMissing, golibvirt.ErrNoDomainMetadata:
		return ErrNotFound
	case golibvirt.ErrDomExist, golibvirt.ErrNetworkExist, golibvirt.ErrStorageVolExist, golibvirt.ErrStoragePoolBuilt:
		return ErrExists
	case golibvirt.ErrAccessDenied, golibvirt.ErrOperationDenied, golibvirt.ErrAuthFailed, golibvirt.ErrAuthCancelled, golibvirt.ErrAuthUnavailable:
		return ErrDenied
	case golibvirt.ErrOperationInvalid:
		return ErrInvalid
	case golibvirt.ErrNoSupport, golibvirt.ErrOperationUnsupported, golibvirt.ErrArgumentUnsupported:
		return ErrUnsupported
	case golibvirt.ErrXMLError, golibvirt.ErrXMLDetail, golibvirt.ErrXMLInvalidSchema:
		return ErrBadXML
	case golibvirt.ErrNoConnect:
		return ErrUnreachable
	}
	return nil
}

// Error is what libvirt said about a call.
type Error struct {
	Op   string // what was tried, such as "define domain"
	Code uint32 // libvirt's virErrorNumber
	Text string // libvirt's message, as virsh prints it behind "error: "
	kind error  // a sentinel, or nil
}

// Error is libvirt's message behind what was tried.
func (e *Error) Error() string { return e.Op + ": " + e.Text }

// Is says whether the error is of one of the package's sentinels.
func (e *Error) Is(target error) bool { return e.kind != nil && target == e.kind }

// Message is libvirt's own message without what was tried, for the tools that
// print it as the stock ones do; "" where err is not libvirt's.
func Message(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Text
	}
	return ""
}

// translate turns an error of the RPC library into ours.
func translate(op string, err error) error {
	if err == nil {
		return nil
	}
	var e golibvirt.Error
	switch {
	case errors.As(err, &e):
		return &Error{Op: op, Code: e.Code, Text: e.Message, kind: sentinel(golibvirt.ErrorNumber(e.Code))}
	case errors.Is(err, golibvirt.ErrUnsupported):
		return fmt.Errorf("%s: %w: the daemon is too old for this call", op, ErrUnsupported)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %w", op, err)
	}
	// Everything else is the wire: interrupted, closed, a packet cut short.
	return fmt.Errorf("%s: %w: %w", op, ErrClosed, err)
}
