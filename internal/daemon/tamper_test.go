package daemon

import (
	"database/sql"
	"errors"
)

// tamper changes the state database behind the daemon's back.
func (x *tester) tamper(statement string) error {
	db, err := sql.Open("sqlite", x.home.Database())
	if err != nil {
		return err
	}
	_, err = db.Exec(statement)
	return errors.Join(err, db.Close())
}
