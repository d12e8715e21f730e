package qemuimg

import (
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"os"

	"github.com/lamina-vm/lamina/format"
)

// secretStore holds what `--object secret` made, by id; other objects have an
// entry without data. It implements format.Secrets; nothing is added once
// images are opened.
type secretStore struct {
	byID map[string]*secret
}

// secret is one key. data is nil for an object that is none.
type secret struct {
	data     []byte
	isSecret bool
}

var _ format.Secrets = (*secretStore)(nil)

// Secret implements format.Secrets. The bytes are a copy, the caller's to wipe.
func (s *secretStore) Secret(id string) ([]byte, error) {
	switch e := s.byID[id]; {
	case e == nil:
		return nil, stockf("No secret with id '%s'", id)
	case !e.isSecret:
		return nil, stockf("Object with id '%s' is not a secret", id)
	default:
		return append(make([]byte, 0, len(e.data)), e.data...), nil
	}
}

// wipe overwrites the keys.
func (s *secretStore) wipe() {
	for _, e := range s.byID {
		clear(e.data)
	}
}

// add makes an object. Messages are stock's and never hold a secret.
func (s *secretStore) add(id, kind string, props map[string]string) error {
	if s.byID[id] != nil {
		return fmt.Errorf("attempt to add duplicate property '%s' to object (type 'container')", id)
	}
	e := &secret{isSecret: kind == "secret"}
	if e.isSecret {
		var err error
		if e.data, err = s.load(props); err != nil {
			return err
		}
	}
	if s.byID == nil {
		s.byID = map[string]*secret{}
	}
	s.byID[id] = e
	return nil
}

// maxSecretFile bounds the file of a secret, which is a passphrase or a key.
const maxSecretFile = 16 << 20

// load reads, decodes and decrypts the data of a secret.
func (s *secretStore) load(props map[string]string) ([]byte, error) {
	file, hasFile := props["file"]
	text, hasData := props["data"]
	var data []byte
	switch {
	case hasFile && hasData:
		return nil, errors.New("'file' and 'data' are mutually exclusive")
	case hasFile:
		st, err := os.Stat(file)
		if err == nil && st.Mode().IsRegular() && st.Size() > maxSecretFile {
			return nil, stockf("Unable to read %s: it has %d bytes, more than any key", file, st.Size())
		}
		if data, err = os.ReadFile(file); err != nil {
			how := "Failed to open file “" + file + "”"
			if err := errors.Unwrap(err); st != nil && st.IsDir() && err != nil {
				how = "Failed to read from file “" + file + "”"
			}
			return nil, stockf("Unable to read %s: %s: %s", file, how, errnoText(err))
		}
	case hasData:
		data = []byte(text)
	default:
		return nil, stockf("Either 'file' or 'data' must be provided")
	}
	if keyid, ok := props["keyid"]; ok {
		return s.decrypt(data, keyid, props)
	}
	if props["format"] == "base64" {
		return decodeBase64(data)
	}
	return data, nil
}

// decrypt decrypts data with another secret, by AES-256 in CBC mode.
func (s *secretStore) decrypt(data []byte, keyid string, props map[string]string) ([]byte, error) {
	key, err := s.Secret(keyid)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	if len(key) != 32 {
		return nil, stockf("Key should be 32 bytes in length")
	}
	text, ok := props["iv"]
	if !ok {
		return nil, stockf("IV is required to decrypt secret")
	}
	iv, err := decodeBase64([]byte(text))
	if err != nil {
		return nil, err
	}
	if len(iv) != aes.BlockSize {
		return nil, stockf("IV should be 16 bytes in length not %d", len(iv))
	}
	if props["format"] == "base64" {
		if data, err = decodeBase64(data); err != nil {
			return nil, err
		}
	}
	if len(data)%aes.BlockSize != 0 {
		return nil, stockf("Length %d must be a multiple of block size 16", len(data))
	}
	if len(data) == 0 {
		return nil, nil
	}
	b, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	plain := make([]byte, len(data))
	cipher.NewCBCDecrypter(b, iv).CryptBlocks(plain, data)
	pad := int(plain[len(plain)-1])
	if pad > aes.BlockSize || pad > len(plain) {
		clear(plain)
		return nil, stockf("Incorrect number of padding bytes (%d) found on decrypted data", pad)
	}
	return plain[:len(plain)-pad], nil
}

// decodeBase64 decodes as stock does: newlines are passed over, groups may
// follow padding, and a rest that is not a whole group is left out.
func decodeBase64(b []byte) ([]byte, error) {
	var out []byte
	var group [4]byte
	var bits uint32
	n := 0
	for _, c := range b {
		v, ok := base64Value(c)
		switch {
		case c == 0:
			return nil, stockf("Base64 data contains embedded NUL characters")
		case !ok:
			return nil, stockf("Base64 data contains invalid characters")
		case c == '\n':
			continue
		}
		group[n], bits = c, bits<<6|uint32(v)
		if n++; n < 4 {
			continue
		}
		if group[0] != '=' && group[1] != '=' {
			out = append(out, byte(bits>>16))
			if group[2] != '=' {
				out = append(out, byte(bits>>8))
			}
			if group[3] != '=' {
				out = append(out, byte(bits))
			}
		}
		n, bits = 0, 0
	}
	return out, nil
}

// base64Value returns the six bits of a character; padding and newlines have
// none.
func base64Value(c byte) (v byte, ok bool) {
	switch {
	case c >= 'A' && c <= 'Z':
		return c - 'A', true
	case c >= 'a' && c <= 'z':
		return c - 'a' + 26, true
	case c >= '0' && c <= '9':
		return c - '0' + 52, true
	case c == '+':
		return 62, true
	case c == '/':
		return 63, true
	}
	return 0, c == '=' || c == '\n'
}
