"""`busline demo`: a small service, its four workers, one of them killed, and an honest count of what came of it."""
