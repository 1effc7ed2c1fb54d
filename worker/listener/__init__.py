"""The one process that receives a pool's messages, and puts them where its workers take them."""
